"""A LibriSpeech of synthetic voices, for trying recipes without its audio.

Real transcripts of LibriSpeech, read aloud by eSpeak NG in the layout in which OpenSLR
publishes the corpus::

    SPEAKERS.TXT  CHAPTERS.TXT
    SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac  SPEAKER-CHAPTER.trans.txt

Readers keep their numbers and their sex. They are assigned to the splits in turn,
independently of the split of their transcripts, so that the text of ``dev-clean`` is
enough for all seven. Error rates on such speech do not predict those on LibriSpeech.
"""

import itertools
import pathlib
import random

import soundfile

from hyperconformer.corpora import librispeech, spoken
from hyperconformer.corpora.manifest import require, write_atomically
from hyperconformer.text import read_text

TEXT_LAYOUT = (
    "SPEAKERS.TXT and CHAPTERS.TXT of LibriSpeech, and one or more of its splits, with "
    "or without audio: SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt"
)


def read_aloud(
    text_folder,
    data_folder,
    splits=librispeech.SPLITS,
    speakers: int = 3,
    utterances: int = 4,
    max_words: int = 25,
    seed: int = 0,
    workers=None,
):
    """Synthesise a small corpus in LibriSpeech's layout.

    The same arguments give the same bytes.

    Arguments
    ---------
    text_folder : str or pathlib.Path
        Transcripts and metadata of LibriSpeech.
    data_folder : str or pathlib.Path
        Where the corpus goes.
    splits : sequence of str
        The splits to make.
    speakers : int
        Readers of each split.
    utterances : int
        Utterances of each reader at most.
    max_words : int
        Longer sentences are left out.
    seed : int
        Random seed of the rates, pitches and noise.
    workers : int, optional
        Threads.

    Returns
    -------
    float
        Minutes of speech.

    Raises
    ------
    FileNotFoundError
        If there are no transcripts or no metadata.
    ValueError
        If there are too few readers, or a number is below 1.
    """
    numbers = {"speakers": speakers, "utterances": utterances, "max_words": max_words}
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    text_folder = require(pathlib.Path(text_folder), TEXT_LAYOUT, librispeech.SOURCE)
    readers = _read_table(text_folder, "SPEAKERS.TXT")
    texts = _read_texts(text_folder, max_words)
    wanted = len(splits) * speakers
    if len(texts) < wanted:
        raise ValueError(
            f"{text_folder} holds sentences of at most {max_words} words of "
            f"{len(texts)} readers; {len(splits)} splits of {speakers} need {wanted}"
        )
    data_folder = pathlib.Path(data_folder)
    chosen = sorted(texts, key=int)[:wanted]
    lines = [
        line
        for reader, split in zip(chosen, itertools.cycle(splits))
        for line in _plan(
            data_folder / split, reader, readers[reader][1], texts[reader][:utterances]
        )
    ]
    spoken.synthesize(
        lines, data_folder, lambda line: spoken.write_audio(line, seed), workers
    )
    spoken.write_transcripts(lines)
    return _write_metadata(text_folder, data_folder, lines)


def _read_texts(text_folder, max_words):
    """List (utterance, text) of each reader."""
    texts = {}
    for file in sorted(text_folder.glob("*/*/*/*.trans.txt")):
        for identifier, text in librispeech.read_transcripts(file).items():
            if 0 < len(text.split()) <= max_words:
                texts.setdefault(file.parts[-3], []).append((identifier, text))
    return texts


def _read_table(folder, name):
    """Return the columns of a metadata file's lines, by their leading number."""
    file = require(folder / name, TEXT_LAYOUT, librispeech.SOURCE)
    table = {}
    for line in read_text(file).splitlines():
        if line and not line.startswith(";"):
            # The last column is a title, which may hold anything.
            columns = [column.strip() for column in line.split("|")]
            table[columns[0]] = columns
    return table


def _plan(folder, reader, sex, texts):
    """List a reader's utterances, in a voice of that sex."""
    split = spoken.SPLITS["train"]
    variants = (split.men if sex == "M" else split.women).split()
    source = random.Random(f"voice {reader}")
    voice = f"{source.choice(spoken.ACCENTS)}+{source.choice(variants)}"
    for identifier, text in texts:
        chapter = identifier.split("-")[1]
        path = folder / reader / chapter / f"{identifier}.flac"
        yield spoken.Line(folder.name, identifier, reader, voice, text, path)


def _write_metadata(text_folder, data_folder, lines):
    """Write SPEAKERS.TXT and CHAPTERS.TXT of the corpus; return its minutes."""
    minutes, splits = {}, {}
    for line in lines:
        duration_s = soundfile.info(line.path).duration
        for name, number in (
            ("SPEAKERS.TXT", line.speaker),
            ("CHAPTERS.TXT", line.path.parent.name),
        ):
            key = name, number
            minutes[key] = minutes.get(key, 0.0) + duration_s / 60
            splits[key] = line.split
    # Columns that differ from the original: minutes, split.
    for name, places in {"SPEAKERS.TXT": (3, 2), "CHAPTERS.TXT": (2, 3)}.items():
        table = _read_table(text_folder, name)
        rows = []
        for key in sorted(minutes, key=lambda key: int(key[1])):
            if key[0] == name:
                columns = list(table[key[1]])
                columns[places[0]] = f"{minutes[key]:.2f}"
                columns[places[1]] = splits[key]
                rows.append(" | ".join(columns) + "\n")
        write_atomically(data_folder / name, "".join(rows).encode())
    return sum(value for key, value in minutes.items() if key[0] == "SPEAKERS.TXT")
