"""CMU AN4 and as many utterances in synthetic voices.

The training set is AN4's plus utterances of eSpeak NG in simulated rooms. Half of these
are sentences of AN4's training set; half are new: letters, spelled names, digits,
numbers, dates and commands. They use only AN4's words, so that its pronunciation
dictionary covers them, and contain no sentence that occurs only in the development or
test set. Those two sets are AN4's, unchanged.

The synthetic part is deterministic: the same options give the same bytes. An
interrupted synthesis continues with the missing utterances.
"""

import functools
import hashlib
import json
import pathlib
import random
from typing import Optional, Union

import numpy as np
import scipy.signal

from hyperconformer.corpora import an4, spoken
from hyperconformer.corpora.manifest import (
    Checks,
    Utterance,
    merge_manifests,
    prepare_split,
    read_manifest,
)
from hyperconformer.corpora.synthesis import speak

# Raise this when the same options give another corpus.
CORPUS_VERSION = 1

# Names of people, towns and streets as Americans may have to spell them.
NAMES = (
    "ALLEN AMANDA ANDERSON ANDREW ANGELA ANTHONY AUSTIN BAKER BALTIMORE BARBARA BEACON "
    "BETTY BOSTON BRIAN BROWN BUFFALO CAMPBELL CARLOS CAROL CARTER CHARLES CHICAGO "
    "CHRISTOPHER CLARK CLEVELAND COLLINS CYNTHIA DALLAS DANIEL DAVID DEBORAH DENVER "
    "DETROIT DONNA DOROTHY EDWARD ELIZABETH EMILY EVANS FAIRVIEW FRANKLIN GARCIA "
    "GEORGE GREEN HARRIS HELEN HENRY HIGHLAND HILL HOUSTON HUGHES JACKSON JACQUELINE "
    "JAMES JASON JEFFREY JENNIFER JESSICA JOHNSON JONATHAN JOSEPH KAREN KATHLEEN "
    "KELLY KENNETH KEVIN KIMBERLY LAKE LARRY LAURA LEWIS LINCOLN LISA LOPEZ MADISON "
    "MAPLE MARGARET MARIA MARK MARTIN MARY MELISSA MEMPHIS MICHAEL MICHELLE MILLER "
    "MITCHELL MOORE MORGAN MURPHY NANCY NASHVILLE NELSON NEWYORK NGUYEN NICHOLAS OAK "
    "OAKLAND OHIO PARKER PATRICIA PAUL PENNSYLVANIA PERRY PETER PHILLIPS PHOENIX "
    "QUINCY RACHEL RAMIREZ REBECCA RICHARD RIVERA ROBINSON ROGERS RONALD RUSSELL RYAN "
    "SAMUEL SANCHEZ SANDRA SARAH SCHWARTZ SCOTT SEATTLE SHARON STEPHEN "
    "STEWART SULLIVAN SUSAN TAYLOR THOMAS THOMPSON TIMOTHY TORRES TURNER TUCSON "
    "VICTORIA VIRGINIA WALKER WALNUT WASHINGTON WATSON WEST WHITE WILLIAMS "
    "WILSON WRIGHT XAVIER YOUNG ZACHARY ZIMMERMAN"
).split()
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
GRAMMAR = {
    **{
        symbol: spoken.GRAMMAR[symbol]
        for symbol in ("nonzero", "teen", "tens", "ordinal", "month")
    },
    "sentence": (
        *["{code}"] * 6,
        *["{name}"] * 6,
        *["{digits}"] * 4,
        *["{date}"] * 3,
        *["{command}"] * 2,
        "{number}",
    ),
    "code": (
        *["{edit} {letters} {number}"] * 3,
        "{letters} {number}",
        "{letters}",
        "ENTER {number}",
    ),
    "edit": ("RUBOUT", "ERASE"),
    "command": "YES NO GO STOP START HELP ENTER ERASE RUBOUT REPEAT".split(),
    "letter": LETTERS,
    "letters": tuple(" ".join(["{letter}"] * count) for count in range(1, 7)),
    "name": tuple(" ".join(name) for name in NAMES),
    "digit": ("ZERO", "OH", *["{nonzero}"] * 9),
    "digits": tuple(
        " ".join(["{digit}"] * count) for count in (1, 3, 4, 5, 5, 7, 7, 10)
    ),
    "decade": ("{tens}", "{tens} {nonzero}"),
    "number": (
        "{digit}",
        "{teen}",
        "{decade}",
        "{digit} {digit}",
        "{digit} {digit} {digit}",
        "{decade} {decade}",
        "{nonzero} HUNDRED {decade}",
        "{nonzero} HUNDRED AND {decade}",
        "{nonzero} THOUSAND {nonzero} HUNDRED {decade}",
    ),
    "date": (
        "{month} {day} NINETEEN {decade}",
        "{day} {month} NINETEEN {decade}",
        "{number_of_month} {teen} {decade}",
        "{number_of_month} {decade} {decade}",
    ),
    "day": (
        "{ordinal}",
        "{nonzero}",
        "{teen}",
        "ELEVENTH",
        "TWELFTH",
        "TWENTY {ordinal}",
        "THIRTIETH",
    ),
    "number_of_month": ("{nonzero}", "TEN", "ELEVEN", "TWELVE"),
}
# Spellings for eSpeak NG of words that it would pronounce differently: the article A, a
# British Z, and an unknown word.
SAID = {"A": "eh", "Z": "zee", "RUBOUT": "rub out"}


def prepare(
    data_folder,
    manifest_folder,
    synthetic_folder="data/an4_synthetic",
    synthetic_utterances: int = 1000,
    seed: int = 0,
    valid_speakers: Optional[Union[int, list[str]]] = None,
    hold_out: bool = True,
    min_duration_s: float = 0.1,
    max_duration_s: Optional[float] = None,
    full_check: bool = False,
    workers: Optional[int] = None,
) -> dict[str, pathlib.Path]:
    """Synthesise missing utterances; write ``train``, ``valid`` and ``test``.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        The AN4 folder; see :mod:`hyperconformer.corpora.an4`.
    manifest_folder : str or pathlib.Path
        Where the manifests go.
    synthetic_folder : str or pathlib.Path
        Folder of the synthetic speech, with one subfolder per set of options.
    synthetic_utterances : int
        Number of synthetic utterances.
    seed : int
        Random seed of the sentences, voices, rooms and noise.
    valid_speakers, hold_out
        As for :func:`hyperconformer.corpora.an4.prepare`.
    min_duration_s, max_duration_s, full_check, workers
        See :class:`~hyperconformer.corpora.manifest.Checks`.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of ``train``, ``valid`` and ``test``.

    Raises
    ------
    FileNotFoundError
        If AN4's folder or one of its lists is missing.
    ValueError
        If ``synthetic_utterances`` is below 1, a held-out speaker is unknown, or a
        split is left empty.
    ImportError
        If espeakng-loader is not installed.
    """
    if synthetic_utterances < 1:
        raise ValueError(
            f"synthetic_utterances must be at least 1, got {synthetic_utterances}; "
            "for AN4 alone, use the corpus an4"
        )
    checks = Checks(min_duration_s, max_duration_s, full_check, workers)
    manifests = an4.prepare(
        data_folder,
        manifest_folder,
        valid_speakers,
        hold_out,
        min_duration_s,
        max_duration_s,
        full_check,
        workers,
    )
    texts = {
        split: [row["wrd"] for row in read_manifest(manifest)]
        for split, manifest in manifests.items()
    }
    settings: dict = {
        "version": CORPUS_VERSION,
        "seed": seed,
        "utterances": synthetic_utterances,
        "known": texts["train"],
        "unheard": sorted({*texts["valid"], *texts["test"]} - {*texts["train"]}),
    }
    # One folder per set of options: a run with other options keeps its files.
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    folder = pathlib.Path(synthetic_folder) / digest[:12]
    lines = plan(
        folder, synthetic_utterances, texts["train"], settings["unheard"], seed
    )
    missing = [line for line in lines if not line.path.exists()]
    if missing:
        write = functools.partial(write_audio, seed=seed)
        spoken.synthesize(missing, folder, write, workers)
    synthetic = prepare_split(
        "an4_synthetic",
        "synthetic",
        [Utterance(line.id, line.speaker, str(line.path), line.text) for line in lines],
        folder,
        manifest_folder,
        checks,
    )
    both = merge_manifests(
        "train_and_synthetic", [manifests["train"], synthetic], manifest_folder
    )
    return {**manifests, "train": both}


def plan(
    folder: pathlib.Path, utterances: int, known: list, unheard: list, seed: int = 0
) -> list[spoken.Line]:
    """Choose text and voice of each utterance.

    Arguments
    ---------
    folder : pathlib.Path
        Where the audio goes.
    utterances : int
        Number of utterances.
    known : list of str
        Sentences to draw every second utterance from; at least one.
    unheard : list of str
        Sentences to exclude: those of the test sets.
    seed : int
        Random seed of sentences and speakers.

    Returns
    -------
    list of Line
        The utterances.

    Example
    -------
    >>> for line in plan(pathlib.Path("data"), 2, ["P G H"], [], seed=1):
    ...     print(line.id, line.voice, line.text)
    synthetic-1082-00000 en-gb-x-rp+m2 P G H
    synthetic-1084-00001 en-gb-x-rp+m5 SIX JULY NINETEEN FORTY
    """
    speakers = spoken.SPLITS["train"].speakers()
    lines = []
    for index in range(utterances):
        source = random.Random(f"an4 text {seed} {index}")
        number, _, voice = source.choice(speakers)
        identifier = f"synthetic-{number}-{index:05d}"
        if index % 2 == 0:
            text = source.choice(known)
        else:
            text = spoken.make_sentence(source, grammar=GRAMMAR)
            while text in unheard:
                text = spoken.make_sentence(source, grammar=GRAMMAR)
        path = folder / number / f"{identifier}.flac"
        lines.append(spoken.Line("synthetic", identifier, number, voice, text, path))
    return lines


def write_audio(line: spoken.Line, seed: int):
    """Synthesise one utterance. Its random choices depend on its ID alone.

    Arguments
    ---------
    line : Line
        Text, voice and file of the utterance.
    seed : int
        Random seed of rate, pitch, room and noise.
    """
    source = random.Random(f"an4 audio {seed} {line.id}")
    # Letters and digits are spoken with or without a pause after each.
    between = source.choice((" ", " ", ", "))
    samples = speak(
        between.join(SAID.get(word, word.lower()) for word in line.text.split()),
        line.voice,
        rate_wpm=source.randint(110, 210),
        pitch=source.randint(25, 75),
        pitch_range=source.randint(20, 80),
        sample_rate_hz=spoken.SAMPLE_RATE_HZ,
    )
    samples = spoken.record_in_room(reverberate(samples, source), source)
    spoken.write_flac(line.path, samples)


def reverberate(samples: np.ndarray, source: random.Random) -> np.ndarray:
    """Simulate a room.

    The response is the direct sound, then white noise that decays by 60 dB in the
    reverberation time: Polack's model of the late response (1988).

    Arguments
    ---------
    samples : numpy.ndarray
        Dry speech, shape (samples,).
    source : random.Random
        Draws the reverberation time, 0.1 to 0.5 s, and the ratio of direct sound to
        room, 0 to 20 dB.

    Returns
    -------
    numpy.ndarray
        float64, longer by the reverberation time.
    """
    rate_hz = spoken.SAMPLE_RATE_HZ
    reverberation_s = source.uniform(0.1, 0.5)
    direct_to_room_db = source.uniform(0, 20)
    generator = np.random.default_rng(source.getrandbits(64))
    time_s = np.arange(1, round(reverberation_s * rate_hz)) / rate_hz
    room = generator.standard_normal(len(time_s)) * 10 ** (
        -3 * time_s / reverberation_s
    )
    room *= 10 ** (-direct_to_room_db / 20) / np.sqrt(np.sum(room**2))
    return scipy.signal.fftconvolve(samples, np.concatenate([[1.0], room]))
