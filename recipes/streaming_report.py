#!/usr/bin/env python3
"""Latency against word error rate of trained streaming recipes.

``python recipes/streaming_report.py RUN [RUN ...] --picture latency.png``: from each
run's folder, its ``train_log.txt`` and its ``model``, a table in Markdown and a
picture. A chunk's latency is its length and the model's look-ahead.
"""

import argparse
import pathlib
import re

from hyperconformer.evaluation.plots import plot_latency, read_test_log
from hyperconformer.hub.folder import load_model
from hyperconformer.model.features import look_ahead_ms

HEADER = """\
| mixer | chunk | latency | {valid} WER | {test} WER | {test} CER | against whole |
|---|---|---:|---:|---:|---:|---:|"""


def describe(run):
    """The mixer's name and the look-ahead (ms) of a run's model.

    Raises
    ------
    ValueError
        If the model looks further ahead than its chunks and features.
    """
    config, _ = load_model(run, ("extractor", "recognizer"))
    if not config["recognizer"].frontend.causal:
        raise ValueError(f"{run}: a front end that is not causal cannot stream")
    mixer = str(config["recognizer"].transformer.attention_type)
    if config["recognizer"].transducer is not None:
        mixer += ", transducer"
    return mixer, look_ahead_ms(config["extractor"])


# What the training adds to the name of a set: the chunk and its right context.
SUFFIX = r"_([\d.]+)(?:\+([\d.]+))?ms"


def chunk_ms(name, split):
    """The chunk that a set was decoded in, by its name, and its right context.

    None = the whole utterance.

    >>> chunk_ms("test_640ms", "test"), chunk_ms("test_560+80ms", "test")
    ((640.0, 0.0), (560.0, 80.0))
    """
    suffix = name.removeprefix(split)
    if not suffix:
        return None
    chunk, right = re.fullmatch(SUFFIX, suffix).groups()
    return float(chunk), float(right or 0)


def rows_of(run, valid, test):
    """(chunk and right context in ms, validation WER, test WER, test CER) of each.

    Raises
    ------
    ValueError
        If the run did not decode these sets, or not the whole utterances.
    """
    log = pathlib.Path(run) / "train_log.txt"
    results = read_test_log(log)
    names = [n for n in results if re.fullmatch(rf"{re.escape(test)}({SUFFIX})?", n)]
    wanted = {valid, test} | {valid + name.removeprefix(test) for name in names}
    if not wanted <= set(results):
        raise ValueError(f"{log} has no results of {sorted(wanted - set(results))}")
    return [
        (
            chunk_ms(name, test),
            results[valid + name.removeprefix(test)]["WER"],
            results[name]["WER"],
            results[name]["CER"],
        )
        for name in names
    ]


def main(arguments=None):
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run")
    parser.add_argument("--valid", default="valid", help="name of the validation set")
    parser.add_argument("--test", default="test", help="name of the test set")
    parser.add_argument("--picture", help="where the plot goes (PNG)")
    options = parser.parse_args(arguments)
    lines, curves = [HEADER.format(valid=options.valid, test=options.test)], {}
    for run in options.runs:
        mixer, ahead_ms = describe(run)
        rows = rows_of(run, options.valid, options.test)
        whole = next(wer for chunk, _, wer, _ in rows if chunk is None)
        curves[mixer] = {}
        for chunk, valid_wer, wer, cer in rows:
            latency = None if chunk is None else sum(chunk) + ahead_ms
            seen, wait, relative = "whole utterance", "its length", ""
            if chunk is None or not chunk[1]:
                curves[mixer][latency] = wer
            if chunk is not None:
                seen = " + ".join(f"{length:g}" for length in chunk if length)
                seen, wait = f"{seen} ms", f"{latency:g} ms"
                relative = f"{wer / whole - 1:+.0%}" if whole else ""
            lines.append(
                f"| {mixer} | {seen} | {wait} | {valid_wer:.2f} % | {wer:.2f} % | "
                f"{cer:.2f} % | {relative} |"
            )
    print("\n".join(lines))
    if options.picture:
        plot_latency(curves, options.picture)


if __name__ == "__main__":
    main()
