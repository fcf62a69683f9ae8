"""Files that were cut short, and headers that do not say how long a file is."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.audio import AudioError, read_audio
from hyperconformer.corpora.manifest import inspect_audio

RATE_HZ = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE_HZ)
# Suffix, container, encoding, and how many missing bytes are noticed.
CONTAINERS = [
    ("wav", "WAV", "PCM_16", 1),
    ("8.wav", "WAV", "PCM_U8", 1),
    ("float.wav", "WAV", "FLOAT", 1),
    ("adpcm.wav", "WAV", "MS_ADPCM", 1),
    ("extensible.wav", "WAVEX", "PCM_16", 1),
    ("rf64", "RF64", "PCM_16", 1),
    ("w64", "W64", "PCM_16", 1),
    ("aiff", "AIFF", "PCM_16", 1),
    ("au", "AU", "PCM_16", 1),
    ("caf", "CAF", "PCM_16", 100),
    ("sph", "NIST", "PCM_16", 1),
    ("flac", "FLAC", "PCM_16", 20),
    ("ogg", "OGG", "VORBIS", 1),
    ("opus", "OGG", "OPUS", 1),
    ("mp3", "MP3", "MPEG_LAYER_III", 600),
]


def encode(container, subtype, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, RATE_HZ, subtype, format=container, **options)
    return bytearray(buffer.getvalue())


@pytest.mark.parametrize(
    "suffix,container,subtype,noticed", CONTAINERS, ids=[c[0] for c in CONTAINERS]
)
def test_every_reader_names_truncation(tmp_path, suffix, container, subtype, noticed):
    path = tmp_path / f"a.{suffix}"
    content = encode(container, subtype)
    path.write_bytes(content)
    whole = len(read_audio(path))
    assert whole >= len(NOISE) and inspect_audio(str(path))[3:] == ("", "")
    for kept in (len(content) // 3, len(content) // 2, len(content) - noticed):
        path.write_bytes(content[:kept])
        with pytest.raises(AudioError, match=f"a.{suffix}.*(truncated|malformed)"):
            read_audio(path)
        fault = inspect_audio(str(path)).fault
        assert fault in ("truncated audio", "unreadable audio")


@pytest.mark.parametrize("endian,order", [("LITTLE", "<I"), ("BIG", ">I")])
@pytest.mark.parametrize(
    "riff_size,data_size",
    [
        (0, 0),
        (36, 0),  # as Python's wave and others begin a file
        (0xFFFFFFFF, 0),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF - 36),
        (0x7FFFF024, 0x7FFFF000),
        (0x80000024, 0x80000000),
        (36 + 2 * len(NOISE), 0),
        (44 + 2 * len(NOISE), 2 * len(NOISE)),  # counts its own 8 bytes
    ],
)
def test_a_header_without_length_means_all_that_is_there(
    tmp_path, riff_size, data_size, endian, order
):
    content = encode("WAV", "PCM_16", endian=endian)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    whole = read_audio(path)
    content[4:8] = struct.pack(order, riff_size)
    content[40:44] = struct.pack(order, data_size)
    path.write_bytes(content)
    assert torch.equal(read_audio(path), whole)
    assert inspect_audio(str(path)) == (len(NOISE), RATE_HZ, 1, "", "")
    assert path.read_bytes() == content
    archive = tmp_path / "a.tar"
    archive.write_bytes(bytes(512) + content)
    assert torch.equal(read_audio(f"{archive}:512:{len(content)}"), whole)


@pytest.mark.parametrize("chunks", [b"", b"LIST" + struct.pack("<I", 4) + b"INFO"])
def test_an_empty_recording_stays_empty(tmp_path, chunks):
    content = encode("WAV", "PCM_16")[:44] + chunks
    content[4:8] = struct.pack("<I", len(content) - 8)
    content[40:44] = bytes(4)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioError, match="no samples"):
        read_audio(tmp_path / "a.wav")
    assert inspect_audio(str(tmp_path / "a.wav")).fault == "no samples"


def test_a_flac_stream_without_length_is_read_to_its_end(tmp_path):
    path, content = tmp_path / "a.flac", encode("FLAC", "PCM_16")
    path.write_bytes(content)
    whole = read_audio(path)
    content[21] &= 0xF0  # the last 36 bits of these bytes count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read_audio(path), whole)
    assert inspect_audio(str(path)) == (len(NOISE), RATE_HZ, 1, "", "")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="truncated or damaged"):
        read_audio(path)
    assert inspect_audio(str(path)).fault == "unreadable audio"


def test_a_chunk_that_is_missing_after_the_samples_does_no_harm(tmp_path):
    content = encode("WAV", "PCM_16")
    content[4:8] = struct.pack("<I", len(content) - 8 + 1000)
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav")) == len(NOISE)
    assert not inspect_audio(str(tmp_path / "a.wav")).fault
