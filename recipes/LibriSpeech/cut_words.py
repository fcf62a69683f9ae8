#!/usr/bin/env python3
"""Cut single words and short phrases out of training utterances, for ``small.yaml``.

``python recipes/LibriSpeech/cut_words.py LIBRISPEECH_FOLDER`` writes the split
``words-train``. Books are read in long sentences: a model that has heard nothing else
does not recognise a word on its own. Of each utterance, one piece of one to three words
is cut out; of AN4's, which spell and count, three.
"""

import argparse
import pathlib
import random
import sys

import torch
from tqdm import tqdm

from hyperconformer import ASR
from hyperconformer.audio import read_audio
from hyperconformer.corpora.librispeech import (
    LAYOUT,
    list_utterances,
    write_split,
)
from hyperconformer.corpora.librispeech import SOURCE as CORPUS
from hyperconformer.corpora.manifest import require
from hyperconformer.transcribe.edges import with_silence

SPLIT, CHAPTER = "words-train", "words"
SOURCES = ("train-clean-5", "train-clean-100-part", "common-voice-train", "an4-train")
SAMPLE_RATE_HZ = 16000
FRAME = SAMPLE_RATE_HZ // 50  # samples of which the quietest makes a boundary
LENGTHS, SHARES = (1, 2, 3), (0.5, 0.25, 0.25)  # words of a piece
PIECES_OF_AN4 = 3  # of an utterance; of all others one
LONGEST_S = 3.0
# A piece must be long enough for its letters, a frame of 40 ms each, at 110 % speed.
SECONDS_A_LETTER = 0.048
SILENT = 1e-3  # power of silence, relative to the loudest frame of a piece
SEED = 1986


def powers_of(samples):
    """(N // FRAME,) power of each frame, without its offset."""
    return samples[: len(samples) // FRAME * FRAME].view(-1, FRAME).var(1, correction=0)


def find_boundaries(samples, words):
    """Where each word begins and ends, in samples.

    A CTC model emits a letter while it is spoken or shortly after, so the boundary of
    two words lies between the last letter of one and the first of the next: it is put
    where the recording is quietest.

    >>> from hyperconformer.core.words import Word
    >>> sound = torch.rand(16000) - 0.5
    >>> sound[7000:8000] = 0.0
    >>> words = [Word("A", 0.1, 0.3, 1.0), Word("B", 0.7, 0.8, 1.0)]
    >>> 7000 <= find_boundaries(sound, words)[1] < 8000
    True
    """
    powers = powers_of(samples)
    boundaries = [0]
    for word, following in zip(words, words[1:]):
        first = int(word.end_s * SAMPLE_RATE_HZ) // FRAME
        last = int(following.start_s * SAMPLE_RATE_HZ) // FRAME
        between = powers[first : max(last, first + 1)]
        quietest = first + (int(between.argmin()) if len(between) else 0)
        boundaries.append(min(quietest * FRAME + FRAME // 2, len(samples)))
    return [*boundaries, len(samples)]


def trim(samples, margin):
    """The piece without the silence around it, but for a margin in samples."""
    powers = powers_of(samples)
    if len(powers) == 0 or powers.max() == 0:
        return samples[:0]
    loud = (powers > SILENT * powers.max()).nonzero()
    first = max(int(loud[0]) * FRAME - margin, 0)
    return samples[first : (int(loud[-1]) + 1) * FRAME + margin]


def choose_piece(count, draw):
    """Draw a piece of an utterance of ``count`` words: its first word and its length.

    >>> choose_piece(1, random.Random(0))
    (0, 1)
    """
    (length,) = draw.choices(LENGTHS, SHARES)
    length = min(length, count)
    return draw.randrange(count - length + 1), length


def cut(utterance, asr, draw, pieces):
    """Yield samples and text of ``pieces`` pieces, which may overlap.

    Raises
    ------
    ValueError
        If there is no audio, no text, or too little audio for it.
    """
    if not utterance.audio or not utterance.text:
        raise ValueError(f"{utterance.id}: audio or transcript is missing")
    samples = read_audio(utterance.audio, SAMPLE_RATE_HZ)
    words = asr.align(samples, SAMPLE_RATE_HZ, utterance.text)
    boundaries = find_boundaries(samples, words)
    for _ in range(pieces):
        start, length = choose_piece(len(words), draw)
        text = " ".join(word.text for word in words[start : start + length])
        piece = samples[boundaries[start] : boundaries[start + length]]
        piece = trim(piece, draw.randrange(SAMPLE_RATE_HZ // 10))
        seconds = len(piece) / SAMPLE_RATE_HZ
        if len(text) * SECONDS_A_LETTER < seconds < LONGEST_S:
            # as the recogniser does with a recording that begins or ends with speech
            yield with_silence(piece, SAMPLE_RATE_HZ)[0], text


def cut_all(root, asr, failed):
    """Yield speaker, samples and text of every piece; list the utterances that fail."""
    draw = random.Random(SEED)
    for source in SOURCES:
        pieces = PIECES_OF_AN4 if source == "an4-train" else 1
        for utterance in tqdm(list_utterances(root / source), desc=source, unit="file"):
            try:
                cuts = list(cut(utterance, asr, draw, pieces))
            except ValueError:  # without audio or text, too short for it, too long
                failed.append(utterance.id)
                continue
            for samples, text in cuts:
                yield utterance.speaker, samples.numpy(), text


def main(options):
    """Write the pieces as FLAC and one file of transcripts for each speaker."""
    torch.set_num_threads(1)
    root, failed = pathlib.Path(options.librispeech), []
    for source in SOURCES:
        require(root / source, LAYOUT, CORPUS)
    target = root / SPLIT
    if target.exists():
        raise FileExistsError(f"{target} is there already: delete it to cut anew")
    asr = ASR.from_hparams(options.model)
    pieces = cut_all(root, asr, failed)
    speakers = write_split(target, pieces, SAMPLE_RATE_HZ, CHAPTER)
    total = sum(map(len, speakers.values()))
    print(f"{target}: {total} pieces, {len(failed)} utterances could not be aligned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("librispeech", help="the folder that holds the splits")
    parser.add_argument("--model", help="which aligns; by default that of `transcribe`")
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"cut_words.py: {error}")
