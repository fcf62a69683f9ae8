"""A corpus in tar shards: a few large files instead of millions of small ones.

:func:`write_shards` packs the manifests of any corpus. :func:`prepare` reads the shards
as a corpus with the same utterances in the same order, so that a run on shards has the
same batches as a run on files::

    SPLIT.csv            position of each utterance: SPLIT-000000.tar:OFFSET:BYTES
    SPLIT-000000.tar     ID.flac and ID.txt of each utterance, in order

Audio is read at its offset in the shard, without unpacking. Members are named as in
WebDataset.
"""

import io
import os
import pathlib
import tarfile
from typing import Optional

import soundfile

from hyperconformer.corpora.manifest import (
    check_merge,
    map_in_threads,
    merge_manifests,
    read_manifest,
    require,
    write_manifest,
)
from hyperconformer.segments import parse_segment

LAYOUT = "a folder of shards, with SPLIT.csv and SPLIT-000000.tar, SPLIT-000001.tar ..."
SOURCE = "hyperconformer shards writes them"


def write_shards(manifests, folder, shard_mb: float = 1000):
    """Pack the audio and the transcripts of manifests into tar shards.

    Arguments
    ---------
    manifests : dict of str to pathlib.Path
        Split to manifest.
    folder : str or pathlib.Path
        Where the shards go.
    shard_mb : float
        Megabytes of audio per shard.

    Returns
    -------
    int
        Number of shards.

    Raises
    ------
    ValueError
        If ``shard_mb`` is not positive.
    """
    if not shard_mb > 0:
        raise ValueError(f"shard_mb must be above 0, got {shard_mb}")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for split, manifest in manifests.items():
        rows = read_manifest(manifest)
        shards: list[list[dict]] = []
        for row in rows:
            row["bytes"] = _estimate_bytes(row["wav"])
            if not shards or sum(r["bytes"] for r in shards[-1]) >= shard_mb * 1e6:
                shards.append([])
            shards[-1].append(row)
        packed = map_in_threads(
            lambda numbered, split=split: _pack(folder, split, *numbered),
            list(enumerate(shards)),
            description=f"{split}: packing",
            unit="shard",
        )
        # Written last: an unfinished split has no manifest.
        write_manifest(
            folder / f"{split}.csv", [row for rows in packed for row in rows]
        )
        written += len(shards)
    return written


def prepare(
    data_folder,
    manifest_folder,
    splits: Optional[list[str]] = None,
    merge: Optional[dict[str, list[str]]] = None,
) -> dict[str, pathlib.Path]:
    """Write one manifest per split, and one for each merger of splits.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The folder of shards.
    manifest_folder : str or pathlib.Path
        Where the manifests go.
    splits : list of str, optional
        The splits to prepare; by default all.
    merge : dict of str to list of str, optional
        Further manifests, each made of several splits.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of the splits and of the mergers.

    Raises
    ------
    FileNotFoundError
        If the folder, a split or a shard is missing.
    ValueError
        If a shard is truncated, or a merger names an unknown split.
    """
    data_folder = require(pathlib.Path(data_folder), LAYOUT, SOURCE)
    manifest_folder = pathlib.Path(manifest_folder)
    splits = splits or sorted(file.stem for file in data_folder.glob("*.csv"))
    merge = merge or {}
    check_merge(merge, splits)
    manifests = {}
    for split in splits:
        rows = read_manifest(require(data_folder / f"{split}.csv", LAYOUT, SOURCE))
        for row in rows:
            row["wav"] = str(data_folder.absolute() / row["wav"])
        _check_shards(rows)
        manifests[split] = write_manifest(manifest_folder / f"{split}.csv", rows)
    for name, parts in merge.items():
        sources = [manifests[part] for part in parts]
        manifests[name] = merge_manifests(name, sources, manifest_folder)
    return manifests


def _pack(folder, split, number, rows):
    """Write one shard; return the rows with the positions of their audio."""
    shard = folder / f"{split}-{number:06d}.tar"
    unfinished = shard.with_suffix(".tmp")
    with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            suffix, audio = _read(row["wav"])
            for ending, content in ((suffix, audio), (".txt", row["wrd"].encode())):
                # No times and no owners: the same corpus gives the same bytes.
                member = tarfile.TarInfo(row["ID"] + ending)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with tarfile.open(unfinished) as tar:
        audio = [member for member in tar if not member.name.endswith(".txt")]
    os.replace(unfinished, shard)
    return [
        {**row, "wav": f"{shard.name}:{member.offset_data}:{member.size}"}
        for row, member in zip(rows, audio)
    ]


def _estimate_bytes(path):
    """Estimate the bytes of a file, or of a segment, in a shard."""
    segment = parse_segment(path)
    size = os.path.getsize(segment.file)
    if segment.start_s is None:
        return size
    duration_s = soundfile.info(segment.file).duration
    return size * (segment.end_s - segment.start_s) / duration_s


def _read(path):
    """Return suffix and bytes of a file; a segment is cut out as FLAC."""
    segment = parse_segment(path)
    file = pathlib.Path(segment.file)
    if segment.start_s is None:
        return file.suffix, file.read_bytes()
    with soundfile.SoundFile(file) as source:
        first, frames = segment.frames(source.frames, source.samplerate)
        source.seek(first)
        # FLAC has no more than 24 bits.
        wide = source.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
        samples = source.read(frames, dtype="int32")
        cut = io.BytesIO()
        subtype = "PCM_24" if wide else "PCM_16"
        soundfile.write(cut, samples, source.samplerate, subtype, format="FLAC")
    return ".flac", cut.getvalue()


def _check_shards(rows):
    """Check that each shard reaches as far as its last utterance."""
    ends = {}
    for row in rows:
        shard, offset, size = row["wav"].rsplit(":", 2)
        ends[shard] = max(ends.get(shard, 0), int(offset) + int(size))
    for shard, end in ends.items():
        found = require(pathlib.Path(shard), LAYOUT, SOURCE).stat().st_size
        if found < end:
            raise ValueError(f"{shard} is cut off: {found} of {end} bytes are there")
