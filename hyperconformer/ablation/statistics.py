"""What differences between error rates are worth."""

import csv
import pathlib

import numpy as np
from scipy import stats

RESAMPLES = 2000


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


def error_rate_interval(errors):
    """A 95 % bootstrap interval of an error rate: utterances are resampled.

    Arguments
    ---------
    errors : dict of str to (int, int)
        Utterance to words and errors.

    Returns
    -------
    low, high : float
        In percent.

    Example
    -------
    >>> error_rate_interval({"a": (4, 1), "b": (8, 2)})
    (25.0, 25.0)
    """
    words, wrong = np.array(list(errors.values()), dtype=float).T
    return _interval((wrong, words), lambda e, n, axis: e.sum(axis) / n.sum(axis))


def error_rate_difference(errors, baseline):
    """A 95 % paired bootstrap interval of how much worse errors are than a baseline's.

    Arguments
    ---------
    errors, baseline : list of dict of str to (int, int)
        Utterance to words and errors, for each seed. The same utterances are drawn
        of both, as both were tested on the same: what makes one utterance hard does
        not blur the comparison. Seeds are added up.

    Returns
    -------
    low, high : float
        In percentage points.

    Raises
    ------
    ValueError
        If they are not of the same utterances.

    Example
    -------
    >>> ours, theirs = {"a": (4, 2), "b": (4, 2)}, {"a": (4, 1), "b": (4, 1)}
    >>> error_rate_difference([ours], [theirs])
    (25.0, 25.0)
    """
    names = sorted(baseline[0])
    if any(sorted(counts) != names for counts in [*errors, *baseline]):
        raise ValueError("a paired comparison needs the same utterances on both sides")

    def totals(runs):
        counts = np.array([[run[name] for name in names] for run in runs], dtype=float)
        return counts.sum(axis=0).T

    (n, e), (n0, e0) = totals(errors), totals(baseline)

    def difference(e, n, e0, n0, axis):
        return e.sum(axis) / n.sum(axis) - e0.sum(axis) / n0.sum(axis)

    return _interval((e, n, e0, n0), difference)


def _interval(samples, statistic):
    """SciPy's bootstrap of utterances, in percent, with a fixed seed."""
    if len(samples[0]) < 2:  # of one utterance nothing can be resampled
        return float("nan"), float("nan")
    found = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return round(100 * float(found.low), 2), round(100 * float(found.high), 2)


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
