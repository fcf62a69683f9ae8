"""CMU AN4: an hour of spelled words, numbers and commands by 84 speakers.

Reads the folder as Carnegie Mellon University's public repository lays it out::

    etc/an4_train.fileids   etc/an4_train.transcription
    etc/an4_test.fileids    etc/an4_test.transcription
    wav/an4_clstk/SPEAKER/UTTERANCE.wav
    wav/an4test_clstk/SPEAKER/UTTERANCE.wav

AN4 has no development set. The split ``valid`` consists of training speakers that are
held out, so that choices need not be made on the test set.
"""

import pathlib
import re
from typing import Optional, Union

from hyperconformer.corpora.manifest import Checks, Utterance, prepare_split, require
from hyperconformer.text import read_text

LAYOUT = (
    "the folder of the AN4 repository, with etc/an4_{train,test}.fileids, "
    "etc/an4_{train,test}.transcription and wav/an4{,test}_clstk/SPEAKER/*.wav"
)
SOURCE = (
    "CMU AN4, public and free, from Carnegie Mellon University "
    "(http://www.speech.cs.cmu.edu/databases/an4/, or the repository cmusphinx/an4)"
)
SUFFIXES = (".wav", ".flac", ".sph")
TRANSCRIPT = re.compile(r"(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()\s]+)\)\s*")


def prepare(
    data_folder,
    manifest_folder,
    valid_speakers: Optional[Union[int, list[str]]] = None,
    hold_out: bool = True,
    min_duration_s: float = 0.1,
    max_duration_s: Optional[float] = None,
    full_check: bool = False,
    workers: Optional[int] = None,
) -> dict[str, pathlib.Path]:
    """Write the manifests ``train``, ``valid`` and ``test``.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The AN4 folder; see the module's text for its layout.
    manifest_folder : str or pathlib.Path
        Where the manifests go.
    valid_speakers : int or list of str, optional
        The training speakers to hold out: their names, or how many to take at equal
        distances from the sorted names. By default, every ninth of the sorted names
        from the fifth on: 8 of the 74 speakers.
    hold_out : bool
        False keeps those speakers in the training set too, for a final run after all
        choices. Its error rate on ``valid`` is then no estimate.
    min_duration_s, max_duration_s, full_check, workers
        See :class:`~hyperconformer.corpora.manifest.Checks`.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of ``train``, ``valid`` and ``test``.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its lists is missing.
    ValueError
        If a held-out speaker is unknown, or a split is left empty.
    """
    checks = Checks(min_duration_s, max_duration_s, full_check, workers)
    data_folder = require(pathlib.Path(data_folder), LAYOUT, SOURCE)
    training = list_utterances(data_folder, "train")
    held_out = choose_valid_speakers(
        sorted({utterance.speaker for utterance in training if utterance.speaker}),
        valid_speakers,
    )
    splits = {
        "train": [u for u in training if not (hold_out and u.speaker in held_out)],
        "valid": [u for u in training if u.speaker in held_out],
        "test": list_utterances(data_folder, "test"),
    }
    return {
        split: prepare_split(
            "an4", split, utterances, data_folder, manifest_folder, checks
        )
        for split, utterances in splits.items()
    }


def choose_valid_speakers(
    speakers: list[str], valid_speakers: Optional[Union[int, list[str]]] = None
) -> list[str]:
    """Choose the training speakers to hold out.

    Arguments
    ---------
    speakers : list of str
        All training speakers, sorted.
    valid_speakers : int or list of str, optional
        As for :func:`prepare`.

    Returns
    -------
    list of str
        The held-out speakers.

    Raises
    ------
    ValueError
        If a speaker is unknown, or there are too few speakers.

    Example
    -------
    >>> choose_valid_speakers(list("abcdefgh"))
    ['e']
    >>> choose_valid_speakers(list("abcdefgh"), 2)
    ['c', 'g']
    >>> choose_valid_speakers(list("abcdefgh"), ["b", "f"])
    ['b', 'f']
    """
    if valid_speakers is None:
        return speakers[4::9]
    if isinstance(valid_speakers, int):
        count = valid_speakers
        if not 0 < count < len(speakers):
            raise ValueError(
                f"valid_speakers must be from 1 to {len(speakers) - 1}, got {count}"
            )
        middles = (len(speakers) * (2 * i + 1) // (2 * count) for i in range(count))
        return [speakers[middle] for middle in middles]
    unknown = sorted(set(valid_speakers) - set(speakers))
    if unknown:
        raise ValueError(
            f"unknown valid_speakers: {', '.join(unknown)}; "
            f"known training speakers: {', '.join(speakers)}"
        )
    return sorted(valid_speakers)


def list_utterances(data_folder: pathlib.Path, part: str) -> list[Utterance]:
    """List the utterances of ``train`` or ``test``, including faulty ones.

    Arguments
    ---------
    data_folder : pathlib.Path
        The AN4 folder.
    part : str
        ``train`` or ``test``.

    Returns
    -------
    list of Utterance
        The listed utterances, then those with a transcript or audio only.

    Raises
    ------
    FileNotFoundError
        If a list is missing.
    """
    etc = data_folder / "etc"
    fileids = require(etc / f"an4_{part}.fileids", LAYOUT, SOURCE)
    transcription = require(etc / f"an4_{part}.transcription", LAYOUT, SOURCE)
    texts, malformed = read_transcription(transcription)

    listed = [pathlib.PurePosixPath(line) for line in read_text(fileids).split()]
    on_disk = _find_audio(data_folder / "wav", {name.parts[0] for name in listed})
    names = [*listed, *sorted(set(on_disk) - set(listed))]
    utterances = [
        Utterance(
            name.name, name.parent.name, on_disk.get(name), texts.pop(name.name, None)
        )
        for name in names
    ]
    utterances += [
        Utterance(identifier, "", None, text) for identifier, text in texts.items()
    ]
    utterances += [
        Utterance(line, "", None, None, "malformed transcript line")
        for line in malformed
    ]
    return utterances


def read_transcription(path: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """Read a file of lines such as ``<s> HELLO </s> (an1-mtcv-b)``.

    Arguments
    ---------
    path : pathlib.Path
        The file. The sentence marks may be missing, as in the test set.

    Returns
    -------
    texts : dict of str to str
        The text of each utterance.
    malformed : list of str
        Lines without an utterance, as ``FILE:LINE``.
    """
    texts, malformed = {}, []
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        match = TRANSCRIPT.fullmatch(line)
        if match:
            texts[match["id"]] = match["text"].strip()
        elif line.strip():
            malformed.append(f"{path.name}:{number}")
    return texts, malformed


def _find_audio(wav_folder, collections):
    """Map each name below the wav folder, without suffix, to its audio file."""
    found = {}
    for collection in sorted(collections):
        folder = require(wav_folder / collection, LAYOUT, SOURCE)
        # Later suffixes overwrite earlier ones: the preferred one comes last.
        for suffix in reversed(SUFFIXES):
            for path in folder.glob(f"*/*{suffix}"):
                name = path.relative_to(wav_folder).with_suffix("")
                found[pathlib.PurePosixPath(name.as_posix())] = str(path)
    return found
