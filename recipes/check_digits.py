#!/usr/bin/env python3
"""Single spoken digits: how many are recognised wrongly, by speaker.

``python recipes/check_digits.py FOLDER --model hyperconformer-librispeech --every 25``

recognises recordings named ``DIGIT_SPEAKER_NUMBER.wav``, as those of the Free Spoken
Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset). They are
telephone speech, cut close to the word. A zero may be read as ``ZERO`` or ``OH``.
"""

import argparse
import collections
import pathlib

import torch
from tqdm import tqdm

from hyperconformer import ASR

NAMES = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()


def is_right(digit, text):
    """Whether a text names the digit.

    >>> is_right(0, "OH"), is_right(1, "WON")
    (True, False)
    """
    return text == NAMES[digit] or (digit == 0 and text == "OH")


def main(arguments=None):
    """Print the wrong digits of each speaker, and of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--model", help="by default, the default of `transcribe`")
    parser.add_argument("--every", type=int, default=1, help="take each n-th recording")
    options = parser.parse_args(arguments)
    files = sorted(options.folder.glob("[0-9]_*_*.wav"))[:: options.every]
    if not files:
        parser.error(f"no recordings DIGIT_SPEAKER_NUMBER.wav in {options.folder}")
    torch.set_num_threads(1)
    asr = ASR.from_hparams(options.model)
    wrong, total = collections.Counter(), collections.Counter()
    for path in tqdm(files, unit="file", disable=None):
        digit, speaker, _ = path.stem.split("_")
        total[speaker] += 1
        wrong[speaker] += not is_right(int(digit), asr.transcribe_file(path).text)
    for speaker in sorted(total):
        print(f"{speaker}: {wrong[speaker]} of {total[speaker]} wrong")
    share = 100 * wrong.total() / total.total()
    print(f"all: {wrong.total()} of {total.total()} digits wrong ({share:.1f} %)")


if __name__ == "__main__":
    main()
