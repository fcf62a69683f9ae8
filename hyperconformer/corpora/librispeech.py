"""LibriSpeech, or any corpus in its layout.

Reads any subset of the layout in which OpenSLR publishes it::

    SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac
    SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt

A ``.wav`` file may replace a ``.flac`` file. Each split gets one manifest of the same
name; ``merge`` joins splits, as for training on 960 hours.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
import soundfile

from hyperconformer.core.files import write_atomically
from hyperconformer.core.text import read_text
from hyperconformer.corpora.manifest import (
    Checks,
    Utterance,
    check_merge,
    map_in_threads,
    merge_manifests,
    prepare_split,
    require,
)

SPLITS = (
    "train-clean-100",
    "train-clean-360",
    "train-other-500",
    "dev-clean",
    "dev-other",
    "test-clean",
    "test-other",
)
LAYOUT = (
    "the folder LibriSpeech that the archives unpack to, with "
    "SPLIT/SPEAKER/CHAPTER/*.flac and SPEAKER-CHAPTER.trans.txt beside them, "
    f"SPLIT being one or more of {', '.join(SPLITS)}"
)
SOURCE = "LibriSpeech, CC BY 4.0, from OpenSLR (https://www.openslr.org/12)"
SUFFIXES = (".flac", ".wav")


def prepare(
    data_folder,
    manifest_folder,
    splits: list[str] | None = None,
    merge: dict[str, list[str]] | None = None,
    min_duration_s: float = 0.1,
    max_duration_s: float | None = None,
    full_check: bool = False,
    workers: int | None = None,
) -> dict[str, pathlib.Path]:
    """Write one manifest per split, and one for each merger of splits.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The folder that holds the splits.
    manifest_folder : str or pathlib.Path
        Where the manifests go.
    splits : list of str, optional
        Folders of the splits; by default all official splits that exist.
    merge : dict of str to list of str, optional
        Further manifests, each made of several splits, for instance
        ``{"train": ["train-clean-100", "train-clean-360"]}``.
    min_duration_s, max_duration_s, full_check, workers
        See :class:`~hyperconformer.corpora.manifest.Checks`.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of the splits and of the mergers.

    Raises
    ------
    FileNotFoundError
        If the folder, or the folder of a split, is missing.
    ValueError
        If a merger names an unknown split, or a split is left empty.
    """
    return prepare_layout(
        "librispeech",
        data_folder,
        manifest_folder,
        splits=splits,
        merge=merge,
        checks=Checks(min_duration_s, max_duration_s, full_check, workers),
    )


def prepare_layout(
    corpus, data_folder, manifest_folder, splits=None, merge=None, checks=None
):
    """Prepare any corpus in this layout, as :func:`prepare` does.

    Arguments
    ---------
    corpus : str
        The name of the corpus.
    data_folder, manifest_folder, splits, merge
        As for :func:`prepare`.
    checks : Checks, optional
        What an utterance must satisfy.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of the splits and of the mergers.
    """
    checks = checks or Checks()
    data_folder = require(pathlib.Path(data_folder), LAYOUT, SOURCE)
    splits = splits or find_splits(data_folder)
    merge = merge or {}
    check_merge(merge, splits)
    for split in splits:
        require(data_folder / split, LAYOUT, SOURCE)
    manifests = {
        split: prepare_split(
            corpus,
            split,
            list_utterances(data_folder / split, checks.workers),
            data_folder,
            manifest_folder,
            checks,
        )
        for split in splits
    }
    for name, sources in merge.items():
        manifests[name] = merge_manifests(
            name, [manifests[source] for source in sources], manifest_folder
        )
    return manifests


def find_splits(data_folder: pathlib.Path) -> list[str]:
    """Find the official splits that a folder holds.

    Arguments
    ---------
    data_folder : pathlib.Path
        The folder that should hold the splits.

    Returns
    -------
    list of str
        Their names.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    splits = [split for split in SPLITS if (data_folder / split).is_dir()]
    if not splits:
        inner = data_folder / "LibriSpeech"
        hint = f"\nDid you mean {inner}?" if inner.is_dir() else ""
        raise FileNotFoundError(
            f"{data_folder} holds none of the splits {', '.join(SPLITS)}.\n"
            f"Expected: {LAYOUT}\nThe corpus: {SOURCE}{hint}"
        )
    return splits


def list_utterances(
    split_folder: pathlib.Path, workers: int | None = None
) -> list[Utterance]:
    """List the utterances of a split, including those without audio or transcript.

    Arguments
    ---------
    split_folder : pathlib.Path
        The folder of the split.
    workers : int, optional
        Threads.

    Returns
    -------
    list of Utterance
        Sorted by speaker, chapter and utterance.
    """
    chapters = sorted(path for path in split_folder.glob("*/*") if path.is_dir())
    listed = map_in_threads(
        _list_chapter, chapters, workers, f"{split_folder.name}: listing", "chapter"
    )
    return [utterance for chapter in listed for utterance in chapter]


def read_transcripts(path: pathlib.Path) -> dict[str, str]:
    """Read a ``.trans.txt`` file: on each line an ID, a space and the text.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    dict of str to str
        The text of each utterance; empty if the line ends after the ID.

    Raises
    ------
    ValueError
        If the file is not UTF-8.
    """
    texts = {}
    # Not splitlines(), which also splits at other characters.
    for line in read_text(path).split("\n"):
        identifier, _, text = line.strip().partition(" ")
        if identifier:
            texts[identifier] = text.strip()
    return texts


def write_transcripts(path: pathlib.Path, texts: dict[str, str]):
    """Write a ``.trans.txt`` file, which :func:`read_transcripts` reads back.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    texts : dict of str to str
        The text of each utterance.
    """
    lines = (f"{identifier} {text}\n" for identifier, text in texts.items())
    write_atomically(path, "".join(lines).encode())


def write_split(
    folder: pathlib.Path,
    utterances: Iterable[tuple[str, np.ndarray, str]],
    sample_rate_hz: int,
    chapter: str = "0",
) -> dict[str, dict[str, str]]:
    """Write a split in this layout, one chapter for each speaker.

    Arguments
    ---------
    folder : pathlib.Path
        The split.
    utterances : iterable of (str, numpy.ndarray, str)
        Speaker, (N,) samples and text; they are written as they come.
    sample_rate_hz : int
        Of the samples.
    chapter : str
        Its name. Utterances are named by speaker, chapter and number.

    Returns
    -------
    dict of str to dict of str to str
        The text of each utterance of each speaker.
    """
    speakers: dict[str, dict[str, str]] = {}
    for speaker, samples, text in utterances:
        texts = speakers.setdefault(speaker, {})
        name = f"{speaker}-{chapter}-{len(texts):04d}"
        path = folder / speaker / chapter / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, sample_rate_hz)
        texts[name] = text
    for speaker, texts in speakers.items():
        place = folder / speaker / chapter
        write_transcripts(place / f"{speaker}-{chapter}.trans.txt", texts)
    return speakers


def _list_chapter(folder):
    """List the utterances of a chapter."""
    speaker = folder.parent.name
    transcripts = folder / f"{speaker}-{folder.name}.trans.txt"
    texts = read_transcripts(transcripts) if transcripts.exists() else {}
    audio = {
        path.stem: str(path)
        # FLAC last: it is preferred if both exist.
        for suffix in reversed(SUFFIXES)
        for path in folder.glob(f"*{suffix}")
    }
    return [
        Utterance(identifier, speaker, audio.get(identifier), texts.get(identifier))
        for identifier in sorted({*audio, *texts})
    ]
