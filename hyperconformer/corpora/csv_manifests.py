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
import pathlib
import re

from hyperconformer.core.text import read_text
from hyperconformer.corpora.manifest import Utterance
from hyperconformer.corpora.own_manifests import make_prepare, resolve_audio

COLUMNS = ("ID", "wav", "wrd")
LAYOUT = (
    "a folder with train.csv, valid.csv and test.csv, each with the columns "
    "ID, wav and wrd"
)
# Some of SpeechBrain's recipes use these for a segment of a file.
SEGMENT_COLUMNS = ("start", "stop")


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
        If the file is not UTF-8, is not CSV, lacks a column or has one twice.
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
    repeated = [name for name in (*COLUMNS, "spk_id") if columns.count(name) > 1]
    if repeated:
        raise ValueError(f"{manifest} has these columns twice: {', '.join(repeated)}")
    if set(SEGMENT_COLUMNS) <= set(columns):
        raise ValueError(
            f"{manifest} has the columns start and stop, which are not read: give a "
            "segment of a file in the column wav, as FILE#t=START,END in seconds"
        )
    data_root = data_root or manifest.parent
    return [_utterance(manifest, data_root, *numbered) for numbered in rows]


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


prepare = make_prepare("csv", list_utterances, LAYOUT)
