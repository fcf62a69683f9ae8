#!/usr/bin/env python3
"""Error rates and speed of a model folder on a LibriSpeech split.

``python recipes/LibriSpeech/evaluate.py MODEL LIBRISPEECH_FOLDER/SPLIT`` prints word
and character error rates with intervals, the real-time factor, the word error rate by
speaker and by length, and the most frequent confusions. ``--greedy`` leaves out the
model's n-gram model; ``--lm FOLDER`` names a neural language model that rescores what
the n-grams find; ``--chunk-ms`` decodes each utterance as a stream of its own; ``--csv
FILE`` writes the counts of each utterance.
"""

import argparse
import collections
import csv
import pathlib
import statistics
import sys
import tempfile
import time
from types import SimpleNamespace

import torch

from hyperconformer import ASR, GreedySearcher, StreamingASR
from hyperconformer.audio import read_audio
from hyperconformer.corpora import librispeech
from hyperconformer.evaluation.error_rates import evaluate, interval, summarize
from hyperconformer.search.ngram import ngram_search
from hyperconformer.training.data import manifest_durations

# Upper bounds of the groups of utterances by their number of words.
LENGTHS = (5, 10, 20, 30, 1000)


def main(options):
    """Recognise the split and print the tables."""
    if options.right_context_ms and not options.chunk_ms:
        raise ValueError("--right-context-ms needs --chunk-ms")
    if options.lm and options.greedy:
        raise ValueError("--lm rescores the readings of a search, got --greedy")
    split = pathlib.Path(options.split)
    search = {"search": GreedySearcher()} if options.greedy else {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = librispeech.prepare(split.parent, folder, splits=[split.name])
        utterances, hours = manifest_durations(manifest[split.name])
        # A split that cannot be used is named before a model is loaded.
        if options.chunk_ms:
            asr = Streams.from_hparams(
                options.model,
                options.chunk_ms,
                right_context_ms=options.right_context_ms,
                **search,
            )
        else:
            asr = ASR.from_hparams(options.model, **search)
        if options.lm:
            rescoring = {"lm_folder": options.lm, "rescore_weight": options.lm_weight}
            recognizer = asr.recognizer
            asr.use_search(ngram_search(asr.ngram, recognizer, **rescoring))
        started = time.perf_counter()
        stats = evaluate(asr, manifest[split.name])
        seconds = time.perf_counter() - started
    print(f"{options.model} on {split.name}: {utterances} utterances")
    for name, stat in stats.items():
        low, high = interval(stat)
        rate = summarize(stat)["error_rate"]
        print(f"{name} {rate:.2f} %, 95 % interval {low:.2f} to {high:.2f}")
    print(
        f"real-time factor {seconds / 3600 / hours:.4f} on {torch.get_num_threads()} "
        f"threads, reading included ({hours:.2f} hours in {seconds:.0f} s)"
    )
    scores = stats["WER"].scores
    _print_by_speaker(scores)
    _print_by_length(scores)
    _print_confusions(scores)
    if options.csv:
        with open(options.csv, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["ID", "words", "word errors", "characters", "char errors"])
            for words, characters in zip(scores, stats["CER"].scores):
                counts = [
                    score[key]
                    for score in (words, characters)
                    for key in ("num_ref_tokens", "num_edits")
                ]
                writer.writerow([words["key"], *counts])


class Streams(StreamingASR):
    """Recognises files as streams."""

    def transcribe_file(self, path):
        """The text of all segments."""
        partials = self.partials([read_audio(path, self.model.sample_rate_hz)])
        texts = [partial.text for partial in partials if partial.ended]
        return SimpleNamespace(text=" ".join(texts))


def _print_by_speaker(scores):
    by_speaker = collections.defaultdict(list)
    for score in scores:
        by_speaker[score["key"].partition("-")[0]].append(score)
    rates = sorted((_rate(group), name) for name, group in by_speaker.items())
    median = statistics.median(rate for rate, _ in rates)
    print(f"\nWER by speaker ({len(rates)}): median {median:.1f} %")
    for name, chosen in (("best", rates[:3]), ("worst", rates[-3:])):
        print(f"  {name}: {', '.join(f'{who} {rate:.1f}' for rate, who in chosen)}")


def _print_by_length(scores):
    print("\nwords      utterances   WER %")
    low = 0
    for high in LENGTHS:
        group = [score for score in scores if low < score["num_ref_tokens"] <= high]
        if group:
            name = f"{low + 1}-{high}" if high < LENGTHS[-1] else f"{low + 1}-"
            print(f"{name:<10}{len(group):>11}{_rate(group):>8.1f}")
        low = high


def _print_confusions(scores, most=10):
    pairs = collections.Counter(
        (score["ref_tokens"][place], score["hyp_tokens"][other])
        for score in scores
        for kind, place, other in score["alignment"]
        if kind == "S"
    )
    print("\nmost frequent confusions (spoken, recognised, times)")
    for (spoken, recognised), times in pairs.most_common(most):
        print(f"  {spoken} {recognised} {times}")


def _rate(group):
    words = sum(score["num_ref_tokens"] for score in group)
    return 100 * sum(score["num_edits"] for score in group) / max(words, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder")
    parser.add_argument("split", help="folder of a split")
    parser.add_argument("--greedy", action="store_true", help="no n-gram model")
    parser.add_argument("--lm", help="output folder of a neural language model")
    parser.add_argument("--lm-weight", type=float, default=0.5, help="its weight (0.5)")
    parser.add_argument("--chunk-ms", type=float, help="as streams, in such chunks")
    parser.add_argument(
        "--right-context-ms", type=float, default=0, help="what such a chunk sees ahead"
    )
    parser.add_argument("--csv", metavar="FILE", help="counts of each utterance")
    try:
        main(parser.parse_args())
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"evaluate.py: {error}")
