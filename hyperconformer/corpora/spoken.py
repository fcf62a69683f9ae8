"""Spoken commands: the embedded corpus, synthesised on first use.

Voices of eSpeak NG speak commands, numbers, times and dates from a small grammar. The
corpus has the layout of LibriSpeech, whose preparation reads it::

    train-spoken/SPEAKER/1/SPEAKER-1-NUMBER.flac   SPEAKER-1.trans.txt
    dev-spoken/...   test-spoken/...   SPEAKERS.TXT   spoken.json

Training, development and test speakers share accents but no timbre. A third of the
test sentences occur in training too, as commands do. The corpus is deterministic: the
same options give the same bytes, for any number of threads. An interrupted synthesis
continues with the missing utterances. With several processes, one prepares it (in
SpeechBrain, ``run_on_main``).

eSpeak NG (package ``espeakng-loader``) is under the GNU General Public License,
version 3 or later. The speech that it produces, this corpus, is not covered by it.
"""

import dataclasses
import io
import itertools
import json
import logging
import os
import pathlib
import random
import re
import shutil
from typing import Optional

import numpy as np
import scipy.signal
import soundfile

from hyperconformer.corpora import librispeech
from hyperconformer.corpora.manifest import Checks, map_in_threads, write_atomically
from hyperconformer.corpora.synthesis import speak

logger = logging.getLogger(__name__)

# Raise this when the same options give another corpus.
CORPUS_VERSION = 1
SAMPLE_RATE_HZ = 16000
CHAPTER = "1"
SETTINGS_FILE = "spoken.json"

ACCENTS = (
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-029",
    "en-gb-x-rp",
    "en-us-nyc",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The speakers of a split: men and women in every accent."""

    folder: str
    first_speaker: int
    men: str
    women: str

    def speakers(self):
        """List (number, sex, voice) of each speaker."""
        variants = [("M", name) for name in self.men.split()]
        variants += [("F", name) for name in self.women.split()]
        return [
            (str(number), sex, f"{accent}+{variant}")
            for number, (accent, (sex, variant)) in enumerate(
                itertools.product(ACCENTS, variants), start=self.first_speaker
            )
        ]


SPLITS = {
    "train": Split(
        "train-spoken",
        1001,
        men="m1 m2 m3 m5 m6 m8 Andy Gene Mike Jacky",
        women="f1 f2 f3 f5 Andrea Alicia anika aunty belinda linda",
    ),
    "valid": Split("dev-spoken", 2001, men="m7 Denis", women="Annie steph"),
    "test": Split("test-spoken", 3001, men="m4 Alex Michael", women="f4 shelby"),
}

# Two to eight words without homophones (no FOR beside FOUR).
GRAMMAR = {
    "sentence": (
        "SET THE ALARM AT {time}",
        "WAKE ME {weekday} AT {time}",
        "START A TIMER OF {number} {unit}",
        "STOP AFTER {number} {unit}",
        "TURN {state} THE {device}",
        "TURN {state} THE {device} AT {time}",
        "{move} THE {entry} PLEASE",
        "{move} THE {entry} AFTER {number} {unit}",
        "PLAY {music} {number}",
        "PLAY {music} {nonzero} HUNDRED {number}",
        "CALL NUMBER {digit} {digit} {digit} {digit}",
        "CALL NUMBER {digit} {digit} {digit} {digit} {digit} {digit}",
        "{digit} {digit} {digit} {digit} {digit}",
        "{date} AT {time}",
        "{weekday} {date}",
        "BOOK A TABLE {weekday} {date}",
        "WHAT IS {number} PLUS {number}",
        "WHAT IS {number} MINUS {number}",
    ),
    "time": ("NOON", "MIDNIGHT", *["{hour}", "{hour} {minute}"] * 3),
    "hour": ("{nonzero}", "TEN", "ELEVEN", "TWELVE"),
    "minute": ("{teen}", "{quarter}", "{quarter} {nonzero}"),
    "quarter": ("TWENTY", "THIRTY", "FORTY", "FIFTY"),
    "date": ("{month} {day}",),
    "day": ("{ordinal}", "{ordinal}", "TWENTY {ordinal}", "TENTH", "TWENTIETH"),
    "number": ("{nonzero}", "{teen}", "{tens}", "{tens} {nonzero}"),
    "digit": ("ZERO", *["{nonzero}"] * 9),
    "nonzero": ("ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE").split(),
    "teen": (
        "TEN ELEVEN TWELVE THIRTEEN FOURTEEN "
        "FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN"
    ).split(),
    "tens": "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY".split(),
    "ordinal": "FIRST SECOND THIRD FOURTH FIFTH SIXTH SEVENTH EIGHTH NINTH".split(),
    "weekday": "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY".split(),
    "month": (
        "JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY "
        "AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER"
    ).split(),
    "unit": ("SECONDS", "MINUTES", "HOURS"),
    "state": ("ON", "OFF"),
    "device": ("LIGHT", "RADIO", "HEATING", "MUSIC"),
    "move": ("OPEN", "CLOSE"),
    "entry": ("DOOR", "WINDOW", "GARAGE"),
    "music": ("SONG", "STATION", "CHANNEL"),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One utterance to synthesise: text, voice and file."""

    split: str
    id: str
    speaker: str
    voice: str
    text: str
    path: pathlib.Path


def prepare(
    data_folder,
    manifest_folder,
    train_utterances: int = 1600,
    valid_utterances: int = 100,
    test_utterances: int = 150,
    seed: int = 0,
    min_duration_s: float = 0.1,
    max_duration_s: Optional[float] = None,
    full_check: bool = False,
    workers: Optional[int] = None,
) -> dict[str, pathlib.Path]:
    """Synthesise missing parts of the corpus and write its manifests.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder of the corpus; made if absent.
    manifest_folder : str or pathlib.Path
        Where the manifests go.
    train_utterances, valid_utterances, test_utterances : int
        The size of each split.
    seed : int
        Random seed of the sentences, rates, pitches and noise.
    min_duration_s, max_duration_s, full_check, workers
        See :class:`~hyperconformer.corpora.manifest.Checks`.

    Returns
    -------
    dict of str to pathlib.Path
        The manifests of ``train``, ``valid`` and ``test``.

    Raises
    ------
    ValueError
        If a split is to be empty, or the folder holds another corpus.
    ImportError
        If espeakng-loader is not installed.
    """
    checks = Checks(min_duration_s, max_duration_s, full_check, workers)
    sizes = {
        "train": train_utterances,
        "valid": valid_utterances,
        "test": test_utterances,
    }
    synthesize_corpus(data_folder, sizes, seed, workers)
    manifests = librispeech.prepare_layout(
        "spoken",
        data_folder,
        manifest_folder,
        splits=[split.folder for split in SPLITS.values()],
        checks=checks,
    )
    return {name: manifests[split.folder] for name, split in SPLITS.items()}


def synthesize_corpus(
    data_folder, sizes: dict[str, int], seed: int = 0, workers: Optional[int] = None
):
    """Synthesise the utterances that are not there yet.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder of the corpus. A corpus of other options is replaced.
    sizes : dict of str to int
        The utterances of ``train``, ``valid`` and ``test``.
    seed : int
        Random seed of sentences and voices.
    workers : int, optional
        Threads.

    Raises
    ------
    ValueError
        If a split is to be empty, or the folder holds another corpus.
    """
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"{split}_utterances must be at least 1, got {size}")
    data_folder = pathlib.Path(data_folder)
    settings = {"version": CORPUS_VERSION, "seed": seed, **sizes}
    _make_room(data_folder, settings)
    lines = [
        line
        for split, size in sizes.items()
        for line in plan_split(data_folder, split, size, seed)
    ]
    missing = [line for line in lines if not line.path.exists()]
    if missing:
        synthesize(missing, data_folder, lambda line: write_audio(line, seed), workers)
        write_transcripts(lines)
        _write_speakers(data_folder, lines)


def synthesize(lines: list, folder, write, workers: Optional[int] = None):
    """Write the audio of some utterances.

    Arguments
    ---------
    lines : list of Line
        The utterances.
    folder : pathlib.Path
        Folder of all their files.
    write : callable
        Function that writes the audio of a line.
    workers : int, optional
        Threads.
    """
    logger.info("synthesising %d utterances into %s", len(lines), folder)
    for _ in map_in_threads(
        write,
        lines,
        workers or os.cpu_count(),  # limited by computation, not by waiting
        "synthesising speech",
        "utterance",
    ):
        pass  # the audio is written; there is no result
    for leftover in folder.rglob(".*.tmp"):  # of a killed synthesis
        leftover.unlink()


def plan_split(data_folder, split: str, size: int, seed: int = 0) -> list[Line]:
    """Choose text and voice of each utterance of a split.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Folder of the corpus; made if absent.
    split : str
        ``train``, ``valid`` or ``test``.
    size : int
        Number of utterances.
    seed : int
        Random seed of the sentences.

    Returns
    -------
    list of Line
        The speakers take turns.

    Example
    -------
    >>> for line in plan_split("data", "test", 2):
    ...     print(line.id, line.voice, line.path.as_posix())
    3001-1-0000 en-us+m4 data/test-spoken/3001/1/3001-1-0000.flac
    3002-1-0000 en-us+Alex data/test-spoken/3002/1/3002-1-0000.flac
    """
    folder = pathlib.Path(data_folder) / SPLITS[split].folder
    speakers = SPLITS[split].speakers()
    lines = []
    for index in range(size):
        turn, place = divmod(index, len(speakers))
        speaker, _, voice = speakers[place]
        identifier = f"{speaker}-{CHAPTER}-{turn:04d}"
        text = make_sentence(random.Random(f"text {seed} {identifier}"))
        path = folder / speaker / CHAPTER / f"{identifier}.flac"
        lines.append(Line(split, identifier, speaker, voice, text, path))
    return lines


def make_sentence(
    source: random.Random, symbol: str = "sentence", grammar: Optional[dict] = None
) -> str:
    """Draw a sentence from a grammar.

    Arguments
    ---------
    source : random.Random
        Draws the alternatives.
    symbol : str
        The start symbol.
    grammar : dict of str to tuple of str, optional
        The alternatives of each symbol; by default this corpus's grammar.

    Returns
    -------
    str
        Upper-case words.

    Example
    -------
    >>> make_sentence(random.Random(3), "hour") in ("TEN", "ELEVEN", "TWELVE")
    True
    """
    grammar = grammar or GRAMMAR
    template = source.choice(grammar[symbol])
    return re.sub(
        r"{(\w+)}", lambda match: make_sentence(source, match[1], grammar), template
    )


def _make_room(data_folder, settings):
    """Record the settings; remove a corpus of other settings."""
    record = data_folder / SETTINGS_FILE
    folders = [data_folder / split.folder for split in SPLITS.values()]
    if record.exists():
        if json.loads(record.read_text(encoding="utf-8")) == settings:
            return
        logger.info("%s was made with other options; making it again", data_folder)
    elif any(folder.exists() for folder in folders):
        raise ValueError(
            f"{data_folder} holds a corpus that was not made here: {SETTINGS_FILE} "
            "is missing. Give another data_folder, or remove it"
        )
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)
    write_atomically(record, json.dumps(settings, indent=2).encode())


def write_audio(line: Line, seed: int):
    """Synthesise one utterance. Its random choices depend on its ID alone.

    Arguments
    ---------
    line : Line
        Text, voice and file of the utterance.
    seed : int
        Random seed of rate, pitch, pauses and noise.
    """
    source = random.Random(f"audio {seed} {line.id}")
    samples = speak(
        line.text.lower(),
        line.voice,
        rate_wpm=source.randint(130, 200),
        pitch=source.randint(30, 70),
        pitch_range=source.randint(30, 80),
        sample_rate_hz=SAMPLE_RATE_HZ,
    )
    write_flac(line.path, record_in_room(samples, source))


def write_flac(path: pathlib.Path, samples: np.ndarray):
    """Write 16-bit FLAC at 16 kHz, atomically.

    Arguments
    ---------
    path : pathlib.Path
        The file; its folder is made if absent.
    samples : numpy.ndarray
        Shape (samples,), between -1 and 1.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, "PCM_16", format="FLAC")
    write_atomically(path, buffer.getvalue())


def record_in_room(samples: np.ndarray, source: random.Random) -> np.ndarray:
    """Add pauses, level and noise, which synthetic speech lacks.

    Arguments
    ---------
    samples : numpy.ndarray
        Clean speech, shape (samples,).
    source : random.Random
        Draws pauses, level, and loudness and colour of the noise.

    Returns
    -------
    numpy.ndarray
        float32, a little longer than the speech.
    """
    pauses = [round(source.uniform(0.1, 0.3) * SAMPLE_RATE_HZ) for _ in range(2)]
    peak = source.uniform(0.15, 0.9)
    signal_to_noise_db = source.uniform(15, 35)
    pole = source.uniform(0.0, 0.95)
    generator = np.random.default_rng(source.getrandbits(64))

    speech = np.pad(samples.astype(np.float64), pauses)
    white = generator.standard_normal(len(speech))
    noise = scipy.signal.lfilter([1.0], [1.0, -pole], white)
    loudness = np.sqrt(np.mean(samples.astype(np.float64) ** 2) / np.mean(noise**2))
    mixed = speech + noise * loudness * 10 ** (-signal_to_noise_db / 20)
    return (mixed * (peak / np.abs(mixed).max())).astype(np.float32)


def write_transcripts(lines: list[Line]):
    """Write the ``.trans.txt`` file of each chapter.

    Arguments
    ---------
    lines : list of Line
        All utterances.
    """
    by_folder: dict = {}
    for line in lines:
        by_folder.setdefault(line.path.parent, {})[line.id] = line.text
    for folder, texts in by_folder.items():
        name = f"{folder.parent.name}-{folder.name}.trans.txt"
        librispeech.write_transcripts(folder / name, texts)


def _write_speakers(data_folder, lines):
    """Write SPEAKERS.TXT with LibriSpeech's columns."""
    minutes = {}
    for line in lines:
        duration_s = soundfile.info(line.path).duration
        minutes[line.speaker] = minutes.get(line.speaker, 0.0) + duration_s / 60
    rows = [
        f"{number:4} | {sex} | {split.folder:12} | {minutes[number]:7.2f} | {voice}"
        for split in SPLITS.values()
        for number, sex, voice in split.speakers()
        if number in minutes
    ]
    header = ";ID  |SEX| SUBSET       |MINUTES  | NAME"
    content = "\n".join([header, *rows, ""])
    write_atomically(data_folder / "SPEAKERS.TXT", content.encode())
