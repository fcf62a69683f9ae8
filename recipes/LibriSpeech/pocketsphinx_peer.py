#!/usr/bin/env python3
"""Error rates of pocketsphinx's packaged English model on a LibriSpeech split.

``pip install pocketsphinx``, then ``python recipes/LibriSpeech/pocketsphinx_peer.py
LIBRISPEECH_FOLDER/SPLIT``. ``--every 20`` takes every twentieth utterance.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import soundfile
from pocketsphinx import Decoder
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.corpora import librispeech
from hyperconformer.evaluation.error_rates import interval, summarize


def main(options):
    """Recognise the utterances and print the rates."""
    split = pathlib.Path(options.split)
    with tempfile.TemporaryDirectory() as folder:
        manifest = librispeech.prepare(split.parent, folder, splits=[split.name])
        rows = list(load_data_csv(str(manifest[split.name])).items())
    rows = rows[:: options.every]
    decoder = Decoder(samprate=16000, loglevel="FATAL")
    stats = {"WER": ErrorRateStats(), "CER": ErrorRateStats(split_tokens=True)}
    audio_s = seconds = 0.0
    for name, row in tqdm(rows, unit="file", dynamic_ncols=True):
        samples, rate_hz = soundfile.read(row["wav"], dtype="int16")
        started = time.perf_counter()
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        seconds += time.perf_counter() - started
        audio_s += len(samples) / rate_hz
        hypothesis = decoder.hyp()
        text = hypothesis.hypstr.upper() if hypothesis else ""
        for stat in stats.values():
            stat.append([name], [text.split()], [row["wrd"].split()])
    print(f"pocketsphinx on {split.name}: {len(rows)} utterances")
    for name, stat in stats.items():
        low, high = interval(stat)
        rate = summarize(stat)["error_rate"]
        print(f"{name} {rate:.2f} %, 95 % interval {low:.2f} to {high:.2f}")
    print(f"real-time factor {seconds / audio_s:.3f} on one thread")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("split", help="folder of a split")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"pocketsphinx_peer.py: {error}")
