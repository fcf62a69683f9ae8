"""Errors that runs wrote down, tests over seeds, and what trials are worth."""

import csv
import math
import pathlib

import numpy as np
from scipy import stats

# A verdict needs an adjusted p below this; intervals cover 1 - ALPHA.
ALPHA = 0.05


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


def mean_interval(values):
    """A 95 % interval of a mean over seeds, by Student's t distribution.

    Arguments
    ---------
    values : list of float
        One a seed, or one difference a seed.

    Returns
    -------
    low, high : float
        In the values' unit; not a number for fewer than two seeds.

    Example
    -------
    >>> [round(end, 2) for end in mean_interval([1.0, 2.0, 3.0])]
    [-0.48, 4.48]
    """
    if len(values) < 2:
        return math.nan, math.nan
    width = stats.t.ppf(1 - ALPHA / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - width), float(np.mean(values) + width)


def paired_p(differences, margin=0.0):
    """The p of a paired t-test, two-sided: is the mean difference the margin?

    Arguments
    ---------
    differences : list of float
        Of two arms, one a seed that both were trained with.
    margin : float
        The mean difference of the null hypothesis, in the differences' unit.

    Returns
    -------
    float
        Not a number for fewer than two seeds; 0 or 1 if all differences are the same.

    Example
    -------
    >>> round(paired_p([1.0, 2.0, 3.0]), 3), paired_p([1.0, 2.0, 3.0], margin=2.0)
    (0.074, 1.0)
    """
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:
        return float(differences[0] == margin)
    return float(stats.ttest_1samp(differences, margin).pvalue)


def holm(p_values):
    """Adjust the p of several tests so that one false finding in all has its level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979): the k-th lowest of m is multiplied by m - k + 1, and
    none is below those before it.

    Arguments
    ---------
    p_values : list of float
        One a test.

    Returns
    -------
    list of float
        In the same order, at most 1.

    Example
    -------
    >>> [round(p, 2) for p in holm([0.03, 0.01, 0.04])]
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    return np.minimum(adjusted, 1.0).tolist()


def verdict(differences, p_value, margin=0.0):
    """Whether it holds that an arm's error is at most so much above the baseline's.

    Arguments
    ---------
    differences : list of float
        The arm's error minus the baseline's, one a seed.
    p_value : float
        Of :func:`paired_p` with this margin, adjusted for the number of arms.
    margin : float
        How much, in the differences' unit; with 0, the error is to be below.

    Returns
    -------
    str
        ``"holds"``, ``"does not hold"`` or ``"undecided"``.

    Example
    -------
    >>> verdict([-1.0, -0.8], 0.01), verdict([-1.0, -0.8], 0.07)
    ('holds', 'undecided')
    """
    if not p_value < ALPHA:
        return "undecided"
    return "holds" if np.mean(differences) < margin else "does not hold"


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
