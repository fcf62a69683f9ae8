"""A corpus in tar shards: a few large files instead of millions of small ones.

:func:`write_shards` packs the manifests of any corpus. :func:`prepare` reads the shards
as a corpus with the same utterances in the same order, so that a run on shards has the
same batches as a run on files::

    SPLIT.csv            position of each utterance: SPLIT-000000.tar:OFFSET:BYTES
    SPLIT-000000.tar     ID.flac and ID.txt of each utterance, in order

Audio is read at its offset in the shard, without unpacking. Members are named as in
WebDataset. Shards are written into a folder, and read from there or from a copy in an
object store (:mod:`hyperconformer.core.store`).
"""

import io
import os
import pathlib
import tarfile

import soundfile

from hyperconformer.core.segments import parse_segment
from hyperconformer.core.store import is_stored, list_sizes
from hyperconformer.corpora.manifest import (
    check_merge,
    map_in_threads,
    merge_manifests,
    missing,
    read_manifest,
    require,
    write_manifest,
)

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
        If ``shard_mb`` is not positive, or the folder is in an object store.
    """
    if not shard_mb > 0:
        raise ValueError(f"shard_mb must be above 0, got {shard_mb}")
    require_local(folder)
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


def require_local(folder):
    """Refuse to write shards into an object store.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where the shards shall go.

    Raises
    ------
    ValueError
        If the folder is in an object store.
    """
    if is_stored(folder):
        raise ValueError(
            f"shards are written into a folder of this machine, got {folder}: copy "
            "them from there, as with: aws s3 sync FOLDER s3://BUCKET/SHARDS"
        )


def prepare(
    data_folder,
    manifest_folder,
    splits: list[str] | None = None,
    merge: dict[str, list[str]] | None = None,
) -> dict[str, pathlib.Path]:
    """Write one manifest per split, and one for each merger of splits.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The folder of shards; ``s3://BUCKET/FOLDER`` in an object store.
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
    hyperconformer.core.store.StoreError
        If an object store cannot be read.
    """
    folder, sizes = _list_files(data_folder)
    manifest_folder = pathlib.Path(manifest_folder)
    splits = splits or sorted(
        name.removesuffix(".csv") for name in sizes if name.endswith(".csv")
    )
    if not splits:
        raise missing(f"{folder}/SPLIT.csv", LAYOUT, SOURCE)
    merge = merge or {}
    check_merge(merge, splits)
    manifests = {}
    for split in splits:
        if f"{split}.csv" not in sizes:
            raise missing(f"{folder}/{split}.csv", LAYOUT, SOURCE)
        rows = read_manifest(f"{folder}/{split}.csv")
        _check_shards(rows, folder, sizes)
        for row in rows:
            row["wav"] = f"{folder}/{row['wav']}"
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
    if segment.end_s is None:
        return size
    info = soundfile.info(segment.file)
    return size * segment.frames(info.frames, info.samplerate)[1] / info.frames


def _read(path):
    """Return suffix and bytes of a file; a segment is cut out as FLAC."""
    segment = parse_segment(path)
    file = pathlib.Path(segment.file)
    if segment.end_s is None:
        return file.suffix, file.read_bytes()
    with soundfile.SoundFile(file) as source:
        first, frames = segment.frames(source.frames, source.samplerate)
        if frames == source.frames:
            return file.suffix, file.read_bytes()
        source.seek(first)
        # FLAC has no more than 24 bits.
        wide = source.subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
        samples = source.read(frames, dtype="int32")
        cut = io.BytesIO()
        subtype = "PCM_24" if wide else "PCM_16"
        soundfile.write(cut, samples, source.samplerate, subtype, format="FLAC")
    return ".flac", cut.getvalue()


def _list_files(data_folder):
    """Return the folder's full name, and the bytes of each of its files."""
    if is_stored(data_folder):
        folder = data_folder.rstrip("/")
        try:
            return folder, list_sizes(folder)
        except FileNotFoundError as error:
            raise missing(folder, LAYOUT, SOURCE) from error
    path = require(pathlib.Path(data_folder), LAYOUT, SOURCE).absolute()
    return str(path), {file.name: file.stat().st_size for file in path.iterdir()}


def _check_shards(rows, folder, sizes):
    """Check that each shard reaches as far as its last utterance."""
    ends = {}
    for row in rows:
        shard, offset, size = row["wav"].rsplit(":", 2)
        ends[shard] = max(ends.get(shard, 0), int(offset) + int(size))
    for shard, end in ends.items():
        if shard not in sizes:
            raise missing(f"{folder}/{shard}", LAYOUT, SOURCE)
        if sizes[shard] < end:
            raise ValueError(
                f"{folder}/{shard} is cut off: {sizes[shard]} of {end} bytes are there"
            )
