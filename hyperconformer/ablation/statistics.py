"""Errors that runs wrote down, and what a number of trials is worth."""

import csv
import pathlib

import numpy as np


def read_errors(path, unit="word"):
    """How much each utterance holds, and errors, from a run's ``errors_*.csv``.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    unit : str
        ``"word"`` or ``"character"``.

    Returns
    -------
    dict of str to (int, int)
        Utterance to its words or characters, and how many of them are wrong.
    """
    with open(pathlib.Path(path), newline="", encoding="utf-8") as file:
        return {
            row["ID"]: (int(row[f"{unit}s"]), int(row[f"{unit}_errors"]))
            for row in csv.DictReader(file)
        }


def expected_best(values, trials):
    """The expected lowest of so many trials, drawn from those that were made.

    "Show Your Work: Improved Reporting of Experimental Results",
    https://arxiv.org/abs/1909.03004, equation 7: with N values, that of rank i is the
    lowest of n draws with probability ((N - i + 1) / N)^n - ((N - i) / N)^n.

    Arguments
    ---------
    values : list of float
        What every trial gave; lower is better.
    trials : int
        n.

    Returns
    -------
    float

    Example
    -------
    >>> expected_best([1.0, 3.0], 1), expected_best([1.0, 3.0], 2)
    (2.0, 1.5)
    """
    ranked = np.sort(np.asarray(values, dtype=float))
    not_lower = np.arange(len(ranked), -1, -1) / len(ranked)
    return float(ranked @ (not_lower[:-1] ** trials - not_lower[1:] ** trials))
