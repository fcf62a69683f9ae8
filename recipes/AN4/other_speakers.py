#!/usr/bin/env python3
"""Other speakers and the telephone: what AN4's own test set does not ask.

``python recipes/AN4/other_speakers.py AN4_FOLDER DATA_FOLDER --model DIR [DIR ...]``
makes these sets in DATA_FOLDER, each with its manifest, and prints the word error rates
of each model:

- ``an4``: AN4's test set;
- ``telephone``: the same, sent through a telephone (8 kHz, 300 Hz high-pass, mu-law);
- ``prompts``: strings of digits spliced from the telephone prompts that Allison Smith
  has recorded for Asterisk, 8 kHz (Debian's package asterisk-core-sounds-en-wav);
- ``prompt_letters``: the same with letters;
- ``flite``: strings of digits by four voices of Flite (Debian's package flite), which
  were made from recordings of four speakers.

A set whose package is not installed is named and left out. The strings are drawn by a
fixed seed.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import soundfile
import torch

from hyperconformer.audio import read_audio
from hyperconformer.corpora import an4
from hyperconformer.corpora.manifest import (
    Checks,
    Utterance,
    prepare_split,
    read_manifest,
)
from hyperconformer.evaluation.error_rates import evaluate, interval
from hyperconformer.training.augment import Telephone
from hyperconformer.transcribe.offline import ASR

RATE_HZ = 16000
PROMPTS = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
FLITE_VOICES = ("kal16", "awb", "rms", "slt")
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UTTERANCES = 100
PAUSE_S = (0.02, 0.15)
SEED = 0


def strings(symbols):
    """Draws strings of three to seven symbols."""
    source = random.Random(SEED)
    return [source.choices(symbols, k=source.randint(3, 7)) for _ in range(UTTERANCES)]


def splice(words, recording_of, source):
    """The words' recordings one after the other, with pauses; and their sample rate."""
    parts = []
    for word in words:
        samples, rate_hz = soundfile.read(recording_of(word))
        parts += [samples, np.zeros(round(source.uniform(*PAUSE_S) * rate_hz))]
    return np.concatenate(parts), rate_hz


def make_prompts(folder, name, symbols, recording_of):
    """Strings of a telephone's prompts; None where they are not installed."""
    if not PROMPTS.is_dir():
        return None
    source = random.Random(SEED)
    utterances = []
    for index, words in enumerate(strings(symbols)):
        path = folder / f"{name}-{index:03d}.wav"
        soundfile.write(path, *splice(words, recording_of, source))
        utterances.append(Utterance(path.stem, "allison", str(path), " ".join(words)))
    return utterances


def make_flite(folder):
    """Strings of digits in Flite's voices; None where it is not installed."""
    if shutil.which("flite") is None:
        return None
    utterances = []
    for index, words in enumerate(strings(DIGITS)):
        voice = FLITE_VOICES[index % len(FLITE_VOICES)]
        path = folder / f"flite-{index:03d}.wav"
        text = ", ".join(words).lower()
        subprocess.run(
            ["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True
        )
        utterances.append(Utterance(path.stem, voice, str(path), " ".join(words)))
    return utterances


def make_telephone(folder, rows):
    """AN4's test utterances, sent through a telephone."""
    telephone = Telephone(1.0, RATE_HZ)
    utterances = []
    for row in rows:
        path = folder / f"{row['ID']}.wav"
        samples = torch.as_tensor(read_audio(row["wav"]))
        soundfile.write(path, telephone(samples.reshape(1, -1))[0].numpy(), RATE_HZ)
        utterances.append(Utterance(row["ID"], row["spk_id"], str(path), row["wrd"]))
    return utterances


def make_sets(an4_folder, data_folder):
    """Makes what can be made; the manifest of each set."""
    manifests = {"an4": an4.prepare(an4_folder, data_folder / "an4")["test"]}
    test_set = read_manifest(manifests["an4"])
    makers = {
        "telephone": lambda folder: make_telephone(folder, test_set),
        "prompts": lambda folder: make_prompts(
            folder,
            "prompts",
            DIGITS,
            lambda word: PROMPTS / "digits" / f"{DIGITS.index(word)}.wav",
        ),
        "prompt_letters": lambda folder: make_prompts(
            folder,
            "prompt_letters",
            LETTERS,
            lambda word: PROMPTS / "letters" / f"{word.lower()}.wav",
        ),
        "flite": make_flite,
    }
    for name, make in makers.items():
        folder = data_folder / name
        folder.mkdir(parents=True, exist_ok=True)
        utterances = make(folder)
        if utterances is None:
            print(f"{name}: its package is not installed; left out", file=sys.stderr)
            continue
        manifests[name] = prepare_split(
            "other_speakers", name, utterances, folder, data_folder, Checks()
        )
    return manifests


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("an4_folder", type=pathlib.Path)
    parser.add_argument("data_folder", type=pathlib.Path)
    parser.add_argument("--model", nargs="+", required=True, type=pathlib.Path)
    options = parser.parse_args()
    recognisers = [ASR.from_hparams(str(model)) for model in options.model]
    manifests = make_sets(options.an4_folder, options.data_folder)
    print("| set | words |" + "".join(f" {model} |" for model in options.model))
    print("|---|---:|" + "---:|" * len(options.model))
    for name, manifest in manifests.items():
        results = [evaluate(asr, manifest)["WER"] for asr in recognisers]
        cells = []
        for wer in results:
            low, high = interval(wer)
            cells.append(
                f"{wer.summarize('error_rate'):.2f} % ({low:.2f} to {high:.2f})"
            )
        words = sum(score["num_ref_tokens"] for score in results[0].scores)
        print(f"| `{name}` | {words} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
