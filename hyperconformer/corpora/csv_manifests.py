"""Your own corpus, as CSV manifests with SpeechBrain's columns.

The data folder holds one file per split::

    train.csv   valid.csv   test.csv

Each has the columns ``ID``, ``wav`` and ``wrd`` (the transcript). ``spk_id`` is
optional. Other columns are ignored, including ``duration``: durations are measured. A
relative path is relative to the manifest's folder or, if there is no such file, to the
working folder. ``$data_root`` stands for the data folder.
"""

import csv
import io
import os
import pathlib
import re
from typing import Callable, Optional, Union

from hyperconformer.corpora.manifest import (
    Checks,
    Utterance,
    check_merge,
    merge_manifests,
    prepare_split,
    require,
)
from hyperconformer.text import read_text

COLUMNS = ("ID", "wav", "wrd")
LAYOUT = (
    "a folder with train.csv, valid.csv and test.csv, each with the columns "
    "ID, wav and wrd"
)
SOURCE = 'your own, see "Train on your own speech" in the README'
# Some of SpeechBrain's recipes use these for a segment of a file.
SEGMENT_COLUMNS = ("start", "stop")


def prepare(
    data_folder,
    manifest_folder,
    splits: Optional[Union[list[str], dict[str, str]]] = None,
    merge: Optional[dict[str, list[str]]] = None,
    min_duration_s: float = 0.1,
    max_duration_s: Optional[float] = None,
    full_check: bool = False,
    workers: Optional[int] = None,
) -> dict[str, pathlib.Path]:
    """Write one checked manifest per split, and one for each merger of splits.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The folder that holds the CSV files.
    manifest_folder : str or pathlib.Path
        Where the checked manifests go.
    splits : list of str or dict of str to str, optional
        The splits: their names, or the file of each, relative to the data folder; by
        default every ``NAME.csv`` of the data folder.
    merge : dict of str to list of str, optional
        Further manifests, each made of several splits.
    min_duration_s, max_duration_s, full_check, workers
        See :class:`~hyperconformer.corpora.manifest.Checks`.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of the splits and of the mergers.

    Raises
    ------
    FileNotFoundError
        If the folder or the file of a split is missing.
    ValueError
        If a file is not CSV or lacks a column, or a split is left empty.
    """
    return prepare_files(
        "csv",
        list_utterances,
        pathlib.Path(data_folder),
        manifest_folder,
        splits,
        merge,
        Checks(min_duration_s, max_duration_s, full_check, workers),
        LAYOUT,
    )


def prepare_files(
    corpus: str,
    read: Callable,
    data_folder: pathlib.Path,
    manifest_folder,
    splits,
    merge: Optional[dict],
    checks: Checks,
    layout: str,
) -> dict[str, pathlib.Path]:
    """Prepare manifests of any format, as :func:`prepare` does.

    Arguments
    ---------
    corpus : str
        The name of the corpus, and the suffix of its files.
    read : callable
        Function of a file and the data folder that returns the utterances.
    data_folder, manifest_folder, splits, merge
        As for :func:`prepare`.
    checks : Checks
        What an utterance must satisfy.
    layout : str
        The expected content of the data folder, for errors.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of the splits and of the mergers.
    """
    files = find_files(corpus, data_folder, splits, layout)
    merge = merge or {}
    check_merge(merge, list(files))
    manifests = {}
    for split, file in files.items():
        manifest = pathlib.Path(manifest_folder) / f"{split}.csv"
        if manifest.resolve() == file.resolve():
            raise ValueError(
                f"the checked manifest of {file} would overwrite it: name another "
                "data_folder or output_folder"
            )
        manifests[split] = prepare_split(
            corpus, split, read(file, data_folder), data_folder, manifest_folder, checks
        )
    for name, parts in merge.items():
        sources = [manifests[part] for part in parts]
        manifests[name] = merge_manifests(name, sources, manifest_folder)
    return manifests


def find_files(corpus: str, data_folder: pathlib.Path, splits, layout: str) -> dict:
    """Find the file of each split.

    Arguments
    ---------
    corpus, data_folder, splits, layout
        As for :func:`prepare_files`.

    Returns
    -------
    dict of str to pathlib.Path
        Split to file.

    Raises
    ------
    FileNotFoundError
        If the data folder or a file is missing, or the folder holds no manifest.
    ValueError
        If the data folder is a file.
    """
    require(data_folder, layout, SOURCE)
    if not data_folder.is_dir():
        raise ValueError(
            f"data_folder should be {layout}; {data_folder} is a file: name its folder"
        )
    if isinstance(splits, dict):
        files = {split: data_folder / file for split, file in splits.items()}
    elif splits:
        files = {split: data_folder / f"{split}.{corpus}" for split in splits}
    else:
        files = {
            file.stem: file
            for file in sorted(data_folder.glob(f"*.{corpus}"))
            # This project writes these beside manifests.
            if not file.name.startswith("skipped_")
        }
    if not files:
        raise FileNotFoundError(
            f"{data_folder} holds no *.{corpus}.\nExpected: {layout}. Files with other "
            "names: --corpus_options='{splits: {train: FILE, valid: FILE, test: FILE}}'"
        )
    return {split: require(file, layout, SOURCE) for split, file in files.items()}


def list_utterances(manifest: pathlib.Path, data_root=None) -> list[Utterance]:
    """List the utterances of a CSV manifest, including faulty ones.

    Arguments
    ---------
    manifest : pathlib.Path
        The CSV file.
    data_root : str or pathlib.Path, optional
        The value of ``$data_root``; by default the manifest's folder.

    Returns
    -------
    list of Utterance

    Raises
    ------
    ValueError
        If the file is not UTF-8, is not CSV, or lacks a column.
    """
    try:
        lines = io.StringIO(read_text(manifest), newline="")
        reader = csv.DictReader(lines, skipinitialspace=True, strict=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{manifest} is not a CSV file: {error}") from error
    if not rows or not set(COLUMNS) <= set(columns):
        raise ValueError(
            f"{manifest} should hold utterances with the columns ID, wav and wrd, but "
            f"holds {len(rows)} with: {', '.join(columns) or 'none'}"
        )
    if set(SEGMENT_COLUMNS) <= set(columns):
        raise ValueError(
            f"{manifest} has the columns start and stop, which are not read: give a "
            "segment of a file in the column wav, as FILE#t=START,END in seconds"
        )
    data_root = data_root or manifest.parent
    return [_utterance(manifest, data_root, *numbered) for numbered in rows]


def resolve_audio(audio: str, manifest: pathlib.Path) -> str:
    """Return the path of an audio file in a manifest.

    Arguments
    ---------
    audio : str
        The manifest's entry: an absolute path, or one relative to the manifest's folder
        or, if there is no such file, to the working folder.
    manifest : pathlib.Path
        The manifest.

    Returns
    -------
    str
    """
    beside = manifest.parent / audio
    return audio if not beside.exists() and os.path.exists(audio) else str(beside)


def _utterance(manifest, data_root, line, row):
    """Return the utterance of a row; an invalid row gets a fault."""
    if None in row or None in row.values():
        # Usually a comma in an unquoted transcript.
        fault = "wrong number of columns", "quote transcripts that contain a comma"
        return Utterance(f"{manifest.name}:{line}", "", None, None, *fault)
    if not row["ID"].strip():
        return Utterance(f"{manifest.name}:{line}", "", None, None, "no ID")
    audio = re.sub(r"\$data_root\b", lambda _: str(data_root), row["wav"].strip())
    return Utterance(
        row["ID"].strip(),
        row.get("spk_id", ""),
        resolve_audio(audio, manifest) if audio else None,
        row["wrd"].strip(),
    )
