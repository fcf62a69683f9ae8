"""Bootstrap intervals of error rates: utterances are drawn anew.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP 2004. Utterances of a speaker resemble each other, so that the
intervals are too narrow for other speakers.
"""

import warnings

import numpy as np
from scipy import stats

RESAMPLES = 2000


def error_rate_interval(errors):
    """A 95 % bootstrap interval of an error rate: utterances are resampled.

    Arguments
    ---------
    errors : dict of str to (int, int)
        Utterance to words (or characters) and errors.

    Returns
    -------
    low, high : float
        In percent; not a number for a single utterance, and where there are no words.

    Example
    -------
    >>> error_rate_interval({"a": (4, 1), "b": (8, 2)})
    (25.0, 25.0)
    """
    words, wrong = np.array(list(errors.values()), dtype=float).T
    return _interval((wrong, words), _rate)


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
        return _rate(e, n, axis) - _rate(e0, n0, axis)

    return _interval((e, n, e0, n0), difference)


def _rate(errors, lengths, axis):
    errors, lengths = errors.sum(axis), lengths.sum(axis)
    undefined = np.full_like(errors, np.nan)
    return np.divide(errors, lengths, out=undefined, where=lengths > 0)


def _interval(samples, statistic):
    """SciPy's bootstrap of utterances, in percent, with a fixed seed."""
    if len(samples[0]) < 2:  # of one utterance nothing can be resampled
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        # SciPy's own interval, which is not used, fails on draws without a rate.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        rates = stats.bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            method="percentile",
            random_state=np.random.default_rng(0),
        ).bootstrap_distribution
    # A draw of utterances without words has no rate.
    rates = rates[~np.isnan(rates)]
    if len(rates) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(rates, [2.5, 97.5])
    return round(100 * float(low), 2), round(100 * float(high), 2)
