#!/usr/bin/env python3
"""Error rates of recordings at other levels and with an offset.

    python recipes/AN4/levels.py AN4_FOLDER --model hyperconformer-an4

decodes AN4's test set as recorded, 30 to 10 dB quieter, 6 dB louder, and with a
constant added to all samples.
"""

import argparse
import tempfile

from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.audio import read_audio
from hyperconformer.corpora import prepare
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.transcribe.offline import ASR

CHANGES = [(0, 0.0), (-30, 0.0), (-20, 0.0), (-10, 0.0), (6, 0.0)]
CHANGES += [(0, 0.02), (0, 0.1), (0, -0.1), (-20, 0.1)]


def main(arguments):
    """Print a line for each gain and offset."""
    asr = ASR.from_hparams(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        rows = read_manifest(prepare("an4", arguments.an4, folder)[arguments.split])
    speech = [read_audio(row["wav"], asr.sample_rate_hz) for row in rows]
    print("| gain | offset | WER |\n|---:|---:|---:|")
    for gain_db, offset in CHANGES:
        stats = ErrorRateStats()
        for row, samples in zip(tqdm(rows, leave=False, dynamic_ncols=True), speech):
            samples = samples * 10 ** (gain_db / 20) + offset
            words = asr.transcribe(samples, asr.sample_rate_hz).text.split()
            stats.append([row["ID"]], [words], [row["wrd"].split()])
        wer = stats.summarize("WER")
        print(f"| {gain_db:+} dB | {offset} | {wer:.2f} % |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("an4", metavar="AN4_FOLDER")
    parser.add_argument("--model", help="as for `hyperconformer transcribe`")
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    main(parser.parse_args())
