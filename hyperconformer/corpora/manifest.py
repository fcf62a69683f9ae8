"""From utterances to SpeechBrain CSV manifests: shared by all corpora.

A corpus lists its utterances. This module inspects their audio in parallel, skips
unusable utterances (named and counted), and writes one manifest per split. For the
split ``train``, the manifest folder holds

``train.csv``
    The manifest, with the columns ``ID, duration, wav, spk_id, wrd``.
``train.json``
    The inputs of the manifest, which tell whether it is up to date, and its counts.
``skipped_train.csv``
    The skipped utterances and the reasons.
``train.scan.jsonl``
    The facts about each audio file, written as soon as the file is read: a killed scan
    continues where it stopped.
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from hyperconformer.core.audio_file import (
    SequentialFile,
    find_truncation,
    open_audio,
    promised_frames,
)
from hyperconformer.core.files import write_atomically
from hyperconformer.core.segments import parse_segment
from hyperconformer.core.text import normalize, read_text

logger = logging.getLogger(__name__)

COLUMNS = ("ID", "duration", "wav", "spk_id", "wrd")
SKIPPED_COLUMNS = ("ID", "wav", "reason", "detail")
FORMAT_VERSION = 1
EXPECTED_SAMPLE_RATE_HZ = 16000

BLOCK_FRAMES = 65536
FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One utterance as its corpus lists it, before its audio is inspected.

    Arguments
    ---------
    id : str
        Unique in its split.
    speaker : str
        The speaker.
    audio : str, optional
        The audio file, or a segment of it (:mod:`core.segments`); None for a
        transcript without audio.
    text : str, optional
        The transcript; None for audio without transcript.
    fault : str, optional
        Why the corpus rejects the utterance.
    detail : str, optional
        Details of the fault.
    """

    id: str
    speaker: str
    audio: str | None
    text: str | None
    fault: str | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Checks:
    """Requirements for an utterance, and how thoroughly they are checked.

    Arguments
    ---------
    min_duration_s : float
        Shorter utterances are skipped.
    max_duration_s : float, optional
        Longer utterances are skipped; None keeps them all.
    full_check : bool
        Decode every sample of every file. By default, only the header, the last sample
        and the samples up to the first that is not zero are read. That finds truncation
        and silence, but not damage in the middle of a file.
    workers : int, optional
        Threads that read audio; by default a few more than processors, since reading
        mostly waits for the disk.
    """

    min_duration_s: float = 0.1
    max_duration_s: float | None = None
    full_check: bool = False
    workers: int | None = None

    def __post_init__(self):
        if self.min_duration_s < 0:
            raise ValueError(
                f"min_duration_s must not be negative, got {self.min_duration_s}"
            )
        if (
            self.max_duration_s is not None
            and self.max_duration_s <= self.min_duration_s
        ):
            raise ValueError(
                f"max_duration_s must be more than min_duration_s "
                f"({self.min_duration_s}), got {self.max_duration_s}"
            )
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


class Audio(NamedTuple):
    """The facts about an audio file; ``fault`` is empty for a sound file."""

    frames: int
    sample_rate_hz: int
    channels: int
    fault: str = ""
    detail: str = ""


class Skipped(NamedTuple):
    """A skipped utterance and the reason."""

    utterance: Utterance
    reason: str
    detail: str = ""


def require(path: pathlib.Path, layout: str, source: str) -> pathlib.Path:
    """Check that a path of a corpus exists.

    Arguments
    ---------
    path : pathlib.Path
        A folder or a file.
    layout : str
        The expected content of the corpus's folder.
    source : str
        Where to get the corpus.

    Returns
    -------
    pathlib.Path
        The same path.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    """
    if not path.exists():
        raise missing(path, layout, source)
    return path


def missing(path, layout: str, source: str) -> FileNotFoundError:
    """Return the error that a path of a corpus does not exist.

    Arguments
    ---------
    path : str or pathlib.Path
        The path.
    layout, source
        As for :func:`require`.

    Returns
    -------
    FileNotFoundError
    """
    return FileNotFoundError(
        f"{path} does not exist.\nExpected: {layout}\nThe corpus: {source}"
    )


def map_in_threads(function, items, workers=None, description="", unit="file"):
    """Yield ``function(item)`` for each item, in order, with a progress bar.

    The bar appears only on a terminal, after one second.

    Arguments
    ---------
    function : callable
        Function of an item.
    items : list
        The items.
    workers : int, optional
        Threads.
    description : str
        Label of the progress bar.
    unit : str
        Unit of the progress bar.

    Yields
    ------
    object
        The results.

    Example
    -------
    >>> list(map_in_threads(abs, [-2, -1], workers=2))
    [2, 1]
    """
    progress = tqdm(
        total=len(items), desc=description, unit=unit, disable=None, delay=1.0
    )
    with progress, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        # Submission in windows bounds the memory for a million files, and the work
        # that is still done after an interruption.
        for start in range(0, len(items), 1024):
            for result in _map_window(pool, function, items[start : start + 1024]):
                progress.update()
                yield result


def _map_window(pool, function, items):
    """Yield the results of a few items; on an error, cancel those not yet begun."""
    futures = [pool.submit(function, item) for item in items]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def inspect_audio(path: str, full_check: bool = False) -> Audio:
    """Check whether an audio file can be trained on.

    Arguments
    ---------
    path : str
        The file, in any format that libsndfile reads, or a segment of it
        (:mod:`hyperconformer.core.segments`). Only the segment is inspected.
    full_check : bool
        Decode every sample.

    Returns
    -------
    Audio
        Length, sample rate, channels and ``fault``, empty for sound audio.
    """
    segment = parse_segment(path)
    if os.path.getsize(segment.file) == 0:
        return Audio(0, 0, 0, "empty file")
    try:
        with open_audio(segment.file, SequentialFile) as audio:
            frames, fault, detail = _find_fault(audio, segment, full_check)
            return Audio(frames, audio.samplerate, audio.channels, fault, detail)
    except (soundfile.SoundFileError, OSError) as error:
        return Audio(0, 0, 0, "unreadable audio", str(error))


def _find_fault(audio, segment, full_check):
    """Return (frames, fault, detail)."""
    truncation = find_truncation(audio, segment.file)
    if truncation:
        return audio.frames, "truncated audio", truncation
    if audio.frames == 0:
        return 0, "no samples", ""
    if not _last_frame_is_readable(audio):
        detail = f"the last of {audio.frames} frames is unreadable"
        return audio.frames, "truncated audio", detail
    total = audio.frames
    if promised_frames(audio) is None:
        total = _count_frames(segment.file)
    try:
        first, frames = segment.frames(total, audio.samplerate)
    except ValueError as error:
        return 0, "segment outside the file", str(error)
    read_all = full_check or audio.subtype in FLOAT_SUBTYPES
    return frames, *_find_sample_fault(audio, first, frames, read_all)


def _count_frames(path):
    """Count the frames of a stream whose header has no length."""
    with open_audio(path, SequentialFile) as audio:
        blocks = iter(lambda: len(audio.read(BLOCK_FRAMES, always_2d=True)), 0)
        return sum(blocks)


def _last_frame_is_readable(audio):
    last = promised_frames(audio)
    if last is None:  # counting the frames reads all of it
        return True
    try:
        audio.seek(last - 1)
        return len(audio.read(1)) == 1
    except soundfile.SoundFileError:
        return False


def _find_sample_fault(audio, first, frames, read_all):
    """Check all samples, or the samples up to the first that is not zero."""
    audio.seek(first)
    read = 0
    is_silent = True
    while wanted := min(BLOCK_FRAMES, frames - read):
        block = audio.read(wanted, dtype="float32")
        if len(block) == 0:
            break
        read += len(block)
        if not np.isfinite(block).all():
            return "samples not finite", "NaN or infinite"
        is_silent = is_silent and not block.any()
        if not is_silent and not read_all:
            return "", ""
    promised = (promised_frames(audio) or 0) if frames == audio.frames else frames
    if read < promised:
        return "truncated audio", f"{read} of {frames} frames are readable"
    return ("silence", "every sample is zero") if is_silent else ("", "")


def prepare_split(
    corpus: str,
    split: str,
    utterances: list,
    data_folder,
    manifest_folder,
    checks: Checks = Checks(),  # noqa: B008 (it is immutable)
) -> pathlib.Path:
    """Write the manifest of one split, unless it is up to date.

    Arguments
    ---------
    corpus : str
        The name of the corpus.
    split : str
        The name of the split and of its manifest.
    utterances : list of Utterance
        All the utterances of the split, including faulty ones.
    data_folder : str or pathlib.Path
        Folder of the corpus; recorded beside the manifest.
    manifest_folder : str or pathlib.Path
        Where the manifest goes.
    checks : Checks
        What an utterance must satisfy.

    Returns
    -------
    pathlib.Path
        The manifest.

    Raises
    ------
    ValueError
        If no utterance remains.
    """
    manifest_folder = pathlib.Path(manifest_folder)
    manifest = manifest_folder / f"{split}.csv"
    utterances = [_normalized(utterance) for utterance in utterances]
    stamps = _read_stamps(utterances, checks)
    inputs = _describe_inputs(corpus, split, utterances, data_folder, checks, stamps)
    if _is_up_to_date(manifest, inputs):
        logger.info("%s: %s is up to date", split, manifest)
        return manifest

    audio = _scan(
        sorted(stamps.items()), manifest_folder / f"{split}.scan.jsonl", split, checks
    )
    kept, skipped = _sort_out(utterances, audio, checks)
    _write_skipped(manifest_folder / f"skipped_{split}.csv", skipped)
    _report(split, kept, skipped, audio)
    if not kept:
        raise ValueError(_explain_empty(corpus, split, data_folder, skipped))
    content = _to_csv(COLUMNS, (_row(utterance, audio) for utterance in kept))
    write_atomically(manifest, content)
    record = {
        "inputs": inputs,
        "counts": _count(kept, skipped, audio),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_atomically(
        manifest.with_suffix(".json"), json.dumps(record, indent=2).encode()
    )
    return manifest


def merge_manifests(name: str, manifests: list, manifest_folder) -> pathlib.Path:
    """Join manifests into one.

    Arguments
    ---------
    name : str
        The name of the new manifest.
    manifests : list of pathlib.Path
        The manifests to join, in order.
    manifest_folder : str or pathlib.Path
        Where the new manifest goes.

    Returns
    -------
    pathlib.Path
        The new manifest.

    Raises
    ------
    ValueError
        If an utterance occurs twice.
    """
    rows = [row for manifest in manifests for row in read_manifest(manifest)]
    repeated = [
        identifier
        for identifier, count in collections.Counter(row["ID"] for row in rows).items()
        if count > 1
    ]
    if repeated:
        raise ValueError(
            f"{name}: {len(repeated)} utterances occur more than once in "
            f"{', '.join(str(manifest) for manifest in manifests)}: "
            f"{', '.join(repeated[:5])}"
        )
    return write_manifest(pathlib.Path(manifest_folder) / f"{name}.csv", rows)


def check_merge(merge: dict, splits: list):
    """Refuse mergers of unknown splits, or with a split's name.

    Arguments
    ---------
    merge : dict of str to list of str
        New manifest to the splits that it joins.
    splits : list of str
        The existing splits.

    Raises
    ------
    ValueError
        If a merger has the name of a split, or names an unknown split.
    """
    for name, sources in merge.items():
        if name in splits:
            raise ValueError(f"merge: {name!r} is the name of a split; choose another")
        unknown = [source for source in sources if source not in splits]
        if unknown or not sources:
            raise ValueError(
                f"merge: {name!r} must be made of some of the splits "
                f"{', '.join(splits)}, got {', '.join(sources) or 'none'}"
            )


def write_manifest(path: pathlib.Path, rows: list) -> pathlib.Path:
    """Write a manifest.

    Arguments
    ---------
    path : pathlib.Path
        The CSV file.
    rows : list of dict
        As :func:`read_manifest` returns them.

    Returns
    -------
    pathlib.Path
        The same path.
    """
    write_atomically(path, _to_csv(COLUMNS, ([r[c] for c in COLUMNS] for r in rows)))
    return path


def read_manifest(manifest) -> list:
    """Read a manifest without SpeechBrain.

    Arguments
    ---------
    manifest : str or pathlib.Path
        A CSV file; it may be in an object store.

    Returns
    -------
    list of dict
        The rows. Values are strings; a missing value is None, surplus values are a list
        under the key None.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a CSV file in UTF-8.
    """
    try:
        return list(csv.DictReader(io.StringIO(read_text(manifest))))
    except csv.Error as error:
        raise ValueError(f"{manifest} is not a CSV file: {error}") from error


def _normalized(utterance):
    """Return the utterance with its transcript normalised as by the tokenizers."""
    if utterance.text is None:
        return utterance
    return dataclasses.replace(utterance, text=normalize(utterance.text))


def _read_stamps(utterances, checks):
    """Map each audio file that exists to its size and modification time."""
    paths = [utterance.audio for utterance in utterances if utterance.audio]
    stamps = map_in_threads(_stamp, paths, checks.workers, "looking for audio")
    return {path: stamp for path, stamp in zip(paths, stamps) if stamp}


def _stamp(path):
    try:
        status = os.stat(parse_segment(path).file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _describe_inputs(corpus, split, utterances, data_folder, checks, stamps):
    """Describe the inputs of a manifest; when they change, it is written again."""
    fingerprint = hashlib.sha256()
    for utterance in utterances:
        stamp = stamps.get(utterance.audio)
        fingerprint.update(repr((dataclasses.astuple(utterance), stamp)).encode())
    return {
        "format_version": FORMAT_VERSION,
        "corpus": corpus,
        "split": split,
        "data_folder": os.path.abspath(data_folder),
        "min_duration_s": checks.min_duration_s,
        "max_duration_s": checks.max_duration_s,
        "full_check": checks.full_check,
        "fingerprint": fingerprint.hexdigest(),
    }


def _is_up_to_date(manifest, inputs):
    """Return whether a manifest has these inputs and is unchanged."""
    try:
        record = json.loads(manifest.with_suffix(".json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return record.get("inputs") == inputs and record.get("sha256") == digest


def _scan(stamped_paths, cache_path, split, checks):
    """Return the facts about all audio files; inspect those missing in the cache.

    Only sound files are cached: a fault may have been the disk's.
    """
    known = _read_cache(cache_path)
    full = checks.full_check
    keys = {path: f"{full} {stamp} {path}" for path, stamp in stamped_paths}
    audio = {path: known[key] for path, key in keys.items() if key in known}
    unknown = [path for path in keys if path not in audio]
    if not unknown:
        return audio

    results = map_in_threads(
        lambda path: inspect_audio(path, full),
        unknown,
        checks.workers,
        f"{split}: reading audio",
    )
    cache_path.parent.mkdir(parents=True, exist_ok=True)
    # Line-buffered, so that a kill loses only the files being read.
    with open(cache_path, "a", buffering=1, encoding="utf-8") as cache:
        cache.write("\n")  # ends a line that a killed run left unfinished
        with contextlib.closing(results):
            for path, result in zip(unknown, results):
                audio[path] = result
                if not result.fault:
                    cache.write(json.dumps([keys[path], *result[:3]]) + "\n")
    return audio


def _read_cache(path):
    """Read the cache of an earlier scan; ignore a line cut by a kill."""
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                key, *facts = json.loads(line)
                known[key] = Audio(*facts)
    return known


def _sort_out(utterances, audio, checks):
    """Split utterances into kept and skipped ones."""
    kept, skipped, seen = [], [], set()
    for utterance in utterances:
        reason, detail = _find_reason(utterance, audio, checks)
        if not reason and utterance.id in seen:
            reason = "repeated ID"
        if reason:
            skipped.append(Skipped(utterance, reason, detail))
        else:
            kept.append(utterance)
            seen.add(utterance.id)
    return kept, skipped


def _find_reason(utterance, audio, checks):
    """Return why to skip an utterance, as (reason, detail), or empty strings."""
    if utterance.fault:
        return utterance.fault, utterance.detail
    if utterance.audio not in audio:
        return "transcript without audio", "no such file" if utterance.audio else ""
    if utterance.text is None:
        return "audio without transcript", ""
    if not utterance.text:
        return "empty transcript", ""
    if "$" in f"{utterance.id}{utterance.audio}{utterance.text}":
        return "dollar sign", "SpeechBrain would read it as a variable"
    return _find_audio_reason(audio[utterance.audio], checks)


def _find_audio_reason(found, checks):
    if found.fault:
        return found.fault, found.detail
    duration_s = found.frames / found.sample_rate_hz
    if duration_s < checks.min_duration_s:
        return "too short", f"{duration_s:.4f} s, at least {checks.min_duration_s} s"
    if checks.max_duration_s is not None and duration_s > checks.max_duration_s:
        return "too long", f"{duration_s:.4f} s, at most {checks.max_duration_s} s"
    return "", ""


def _row(utterance, audio):
    found = audio[utterance.audio]
    duration_s = round(found.frames / found.sample_rate_hz, 6)
    path = os.path.abspath(utterance.audio)
    return utterance.id, duration_s, path, utterance.speaker, utterance.text


def _write_skipped(path, skipped):
    """Write the skipped utterances; remove an earlier list if there are none."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    rows = (
        (item.utterance.id, item.utterance.audio or "", item.reason, item.detail)
        for item in skipped
    )
    write_atomically(path, _to_csv(SKIPPED_COLUMNS, rows))


def _to_csv(columns, rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _count(kept, skipped, audio):
    """Count the kept and the skipped utterances."""
    found = [audio[utterance.audio] for utterance in kept]
    return {
        "utterances": len(kept),
        "speakers": len({utterance.speaker for utterance in kept}),
        "hours": round(sum(a.frames / a.sample_rate_hz for a in found) / 3600, 4),
        "skipped": _count_reasons(skipped),
        "other_sample_rate": sum(
            a.sample_rate_hz != EXPECTED_SAMPLE_RATE_HZ for a in found
        ),
        "several_channels": sum(a.channels > 1 for a in found),
    }


def _count_reasons(skipped):
    return dict(collections.Counter(item.reason for item in skipped).most_common())


def _report(split, kept, skipped, audio):
    """Log a summary of a split."""
    counts = _count(kept, skipped, audio)
    logger.info(
        "%s: %d utterances of %d speakers, %.2f hours",
        split,
        counts["utterances"],
        counts["speakers"],
        counts["hours"],
    )
    if counts["other_sample_rate"]:
        logger.warning(
            "%s: %d utterances are not at %d Hz; training resamples them",
            split,
            counts["other_sample_rate"],
            EXPECTED_SAMPLE_RATE_HZ,
        )
    if counts["several_channels"]:
        logger.warning(
            "%s: %d utterances have several channels; training mixes them",
            split,
            counts["several_channels"],
        )
    if skipped:
        logger.warning(
            "%s: skipped %d utterances (%s), listed in skipped_%s.csv: %s",
            split,
            len(skipped),
            _say_reasons(skipped),
            split,
            _name_some(skipped),
        )


def _say_reasons(skipped):
    return ", ".join(f"{count} {why}" for why, count in _count_reasons(skipped).items())


def _name_some(skipped, most=5):
    names = [f"{item.utterance.id} ({item.reason})" for item in skipped[:most]]
    return ", ".join(names) + (", ..." if len(skipped) > most else "")


def _explain_empty(corpus, split, data_folder, skipped):
    found = (
        f"all {len(skipped)} utterances were skipped: {_say_reasons(skipped)} "
        f"(skipped_{split}.csv names them)"
        if skipped
        else "no utterance was found"
    )
    return f"the split {split!r} of {corpus} in {data_folder} is empty: {found}"
