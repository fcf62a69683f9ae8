"""Your own corpus, as JSON Lines manifests with NeMo's keys.

The data folder holds one file per split (``train.jsonl``, ``valid.jsonl``,
``test.jsonl``) with one utterance per line::

    {"audio_filepath": "clips/1.wav", "text": "turn it on"}
    {"audio_filepath": "talk.flac", "offset": 12.5, "duration": 3.2, "text": "good day"}

The utterance is the segment of ``duration`` seconds from ``offset`` (seconds) on.
Without ``offset`` it begins with the file, and ends with it if the file is shorter than
``duration``; without ``duration`` too, it is the whole file.
``speaker`` is optional; other keys are ignored. A relative path is relative to the
manifest's folder or, if there is no such file, to the working folder.
"""

import json
import math
import pathlib

from hyperconformer.core.segments import name_segment
from hyperconformer.core.text import read_text
from hyperconformer.corpora.manifest import Utterance
from hyperconformer.corpora.own_manifests import make_prepare, resolve_audio

KEYS = ("audio_filepath", "text")
LAYOUT = (
    "a folder with train.jsonl, valid.jsonl and test.jsonl, each with one JSON object "
    "per line with the keys audio_filepath and text"
)


def list_utterances(manifest: pathlib.Path, data_root=None) -> list[Utterance]:
    """List the utterances of a JSON Lines manifest, including faulty ones.

    Arguments
    ---------
    manifest : pathlib.Path
        The file.
    data_root : str or pathlib.Path, optional
        Not used: paths have no variables.

    Returns
    -------
    list of Utterance
        The ID of an utterance is the path of its file without suffix. For a segment, it
        ends with the segment's start and end in milliseconds.

    Raises
    ------
    ValueError
        If the file is not UTF-8, or no line has the keys.
    """
    content = read_text(manifest)
    # Not splitlines(), which also splits at other characters.
    utterances = [
        _utterance(manifest, number, line)
        for number, line in enumerate(content.split("\n"), start=1)
        if line.strip()
    ]
    if all(utterance.fault in _NO_ENTRY for utterance in utterances):
        first = f"; line 1: {utterances[0].detail}" if utterances else ""
        raise ValueError(
            f"{manifest} should hold one JSON object per line with the keys "
            f"{' and '.join(KEYS)}, but no line does{first}"
        )
    return utterances


_NO_ENTRY = ("malformed JSON", "missing keys")


def _utterance(manifest, number, line):
    """Return the utterance of a line; an invalid line gets a fault."""

    def faulty(fault, detail=""):
        return Utterance(f"{manifest.name}:{number}", "", None, None, fault, detail)

    try:
        entry = json.loads(line)
    except ValueError as error:
        return faulty("malformed JSON", str(error))
    if not isinstance(entry, dict):
        return faulty("malformed JSON", f"{type(entry).__name__}, not an object")
    missing = [key for key in KEYS if key not in entry]
    if missing:
        has = f"it has: {', '.join(entry) or 'none'}"
        return faulty("missing keys", f"{', '.join(missing)}; {has}")
    path, text = entry["audio_filepath"], entry["text"]
    if not isinstance(path, str) or not isinstance(text, str):
        return faulty("audio_filepath and text must be strings")
    if not path:
        return faulty("no audio_filepath")
    name, audio = _name(path), resolve_audio(path, manifest)
    start_s, duration_s = entry.get("offset"), entry.get("duration")
    if start_s is not None:
        if not (_is_time(start_s) and _is_time(duration_s) and duration_s > 0):
            got = f"got {start_s!r} and {duration_s!r}"
            return faulty("offset needs a duration", f"both in seconds, {got}")
        end_s = start_s + duration_s
        audio = name_segment(audio, start_s, end_s)
        name += f"-{round(1000 * start_s)}-{round(1000 * end_s)}"
    elif duration_s is not None:
        if not (_is_time(duration_s) and duration_s > 0):
            return faulty("invalid duration", f"in seconds, got {duration_s!r}")
        audio = name_segment(audio, None, duration_s)
    return Utterance(name, str(entry.get("speaker", "")), audio, text.strip())


def _name(path):
    pure = pathlib.PurePosixPath(path)
    parts = (pure.parent / pure.stem).parts
    return "/".join(part for part in parts if part not in ("/", ".."))


def _is_time(seconds):
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and math.isfinite(seconds) and seconds >= 0


prepare = make_prepare("jsonl", list_utterances, LAYOUT)
