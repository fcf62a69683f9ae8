"""Opening audio files: headers without a length, and files that were cut short.

libsndfile reads a truncated file to its end without an error, and reads nothing where
a recorder was stopped before it wrote the length into the header. What the header
promises is therefore compared with what the file holds.
"""

import io
import mmap
import os
import re
import struct
from typing import NamedTuple

import soundfile

# Writers that cannot seek back, or were stopped, leave such sizes for "unknown": 0,
# 0x7FFFF000 (SoX), 0x7FFFFFFF, 0x80000000 (arecord), 0xFFFFFFFF, and those plus or
# minus the header.
_UNKNOWN_SIZES = (
    range(0, 1),
    range(0x7FFFF000, 0x80001000),
    range(0xFFFFF000, 0x100000000),
)
# libsndfile's own remark, in its log, that a file is shorter than its header says; of
# the chunk that holds the samples, as others may be wrong without harm.
_REMARK = re.compile(
    r"^ *(?:Riff size|riff|SSND|Data Size|data) *: (\d+) \(should be (\d+)\)", re.M
)
# libsndfile's number of samples for a FLAC stream whose header has none.
_UNKNOWN_FRAMES = 2**63 - 1
# How far the length of an MP3 file is off: decoders trim its ends differently.
_MP3_SLACK_FRAMES = 1152
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_SPHERE_HEADER_BYTES = 1024


class SequentialFile(soundfile.SoundFile):
    """A SoundFile that is read from the beginning to the end, and never sought in.

    :class:`soundfile.SoundFile` seeks after every read, which fails in a FLAC stream
    whose header has no length, and disturbs libsndfile's MP3 decoder.
    """

    def seekable(self):
        """False, so that nothing seeks."""
        return False


def open_audio(source, kind=soundfile.SoundFile):
    """Open an audio file; one whose WAV header has no length is read to its end.

    Arguments
    ---------
    source : str or pathlib.Path or io.BytesIO
        The file, or its content.
    kind : type
        ``soundfile.SoundFile`` or :class:`SequentialFile`.

    Returns
    -------
    soundfile.SoundFile

    Raises
    ------
    soundfile.SoundFileError
        If libsndfile cannot open it.
    """
    with _as_binary(source) as file:
        data = _find_wav_data(file)
    if data is None or data.size != 0 or data.is_known:
        try:
            return kind(source)
        except TypeError as error:  # a name that ends with .raw
            raise soundfile.SoundFileError(
                "samples without a header say neither their rate nor their type: "
                "convert them to WAV, as with ffmpeg or sox"
            ) from error
    if isinstance(source, io.BytesIO):
        content = io.BytesIO(source.getbuffer())
        header = content.getbuffer()
    else:
        with open(source, "rb") as file:
            # Copied when written to: the file on the disk stays as it is.
            header = content = _Mapped(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header[data.offset - 4 : data.offset] = b"\xff\xff\xff\xff"
    return kind(content)


class _Mapped(mmap.mmap):
    """A file in memory, in which libsndfile may seek past the end as in others."""

    def seek(self, offset, whence=os.SEEK_SET):
        place = offset + (0, self.tell(), len(self))[whence]
        super().seek(min(max(place, 0), len(self)))


def promised_frames(audio):
    """How many samples of each channel must be readable.

    Arguments
    ---------
    audio : soundfile.SoundFile
        The open file.

    Returns
    -------
    int or None
        None where the header leaves it open.
    """
    if audio.frames == _UNKNOWN_FRAMES:
        return None
    slack = _MP3_SLACK_FRAMES if audio.format == "MP3" else 0
    return max(audio.frames - slack, min(audio.frames, 1))


def find_truncation(audio, source):
    """Say what an open file lacks of what its header promises.

    Arguments
    ---------
    audio : soundfile.SoundFile
        The open file.
    source : str or pathlib.Path or io.BytesIO
        Where it is from.

    Returns
    -------
    str
        Empty where nothing is missing. MP3 and FLAC headers promise samples, not
        bytes: whether these are there, only reading tells.
    """
    missing, unit = 0, "bytes"
    with _as_binary(source) as file:
        if audio.format in ("WAV", "WAVEX"):
            data = _find_wav_data(file)
            if data is not None and data.is_known:
                missing = data.size - data.available
        elif audio.format == "OGG":
            missing = _count_missing_ogg_bytes(file)
        elif audio.format == "NIST":
            missing, unit = _count_missing_sphere_frames(file, audio.frames), "samples"
        else:
            for promised, found in _REMARK.findall(audio.extra_info):
                if not _is_unknown(int(promised)):
                    missing = max(missing, int(promised) - int(found))
    return f"{missing} {unit} are missing at its end" if missing > 0 else ""


class _WavData(NamedTuple):
    """The data chunk: where it begins, what it promises, how much there is.

    ``is_known`` is False where the writer left its size open.
    """

    offset: int
    size: int
    available: int
    is_known: bool


def _find_wav_data(file) -> _WavData | None:
    """The data chunk of a WAV file; None of another file, or where there is none."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic, riff, form = file.read(4), file.read(4), file.read(4)
    if magic not in (b"RIFF", b"RIFX") or form != b"WAVE":
        return None
    order = "<I" if magic == b"RIFF" else ">I"
    while len(header := file.read(8)) == 8:
        (size,) = struct.unpack(order, header[4:])
        if header[:4] != b"data":
            file.seek(size + size % 2, os.SEEK_CUR)
            continue
        offset = file.tell()
        known = not _is_unknown(size)
        if size == 0:
            # An empty chunk, if RIFF's size ends with it or covers other chunks.
            (riff_size,) = struct.unpack(order, riff)
            covers_rest = 8 + riff_size > offset and not _is_unknown(riff_size)
            known = offset == end or (covers_rest and _is_chunk(file.read(4)))
        return _WavData(offset, size, end - offset, known)
    return None


def _is_unknown(size):
    return any(size in sizes for sizes in _UNKNOWN_SIZES)


def _is_chunk(name):
    """Whether four bytes may be the name of a chunk."""
    return len(name) == 4 and all(0x20 <= byte < 0x7F for byte in name)


def _count_missing_ogg_bytes(file):
    """Of the last page; a stream that was never ended, but in whole pages, is whole."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _OGG_PAGE_BYTES))
    tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    segments = page[26] if len(page) > 26 else 0
    return 27 + segments + sum(page[27 : 27 + segments]) - len(page)


def _count_missing_sphere_frames(file, frames):
    file.seek(0)
    count = re.search(rb"sample_count -i (\d+)", file.read(_SPHERE_HEADER_BYTES))
    return int(count[1]) - frames if count else 0


def _as_binary(source):
    if isinstance(source, io.BytesIO):
        return io.BytesIO(source.getbuffer())
    return open(source, "rb")
