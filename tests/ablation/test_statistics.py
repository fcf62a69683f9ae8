"""Intervals and expected best results."""

import itertools
import math

import numpy as np
import pytest

from hyperconformer.ablation.statistics import expected_best
from hyperconformer.evaluation.bootstrap import (
    error_rate_difference,
    error_rate_interval,
)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    source = np.random.default_rng(0)
    covered, trials = 0, 100
    for _ in range(trials):
        wrong = source.binomial(10, 0.2, size=60)
        low, high = error_rate_interval({str(i): (10, n) for i, n in enumerate(wrong)})
        covered += low <= 20.0 <= high
    # 95 of 100 expected; fewer than 85 would have a probability of 3e-5.
    assert 85 <= covered <= 100


def test_pairing_takes_out_what_utterances_have_in_common():
    source = np.random.default_rng(1)
    hard = source.integers(0, 9, size=80)
    theirs = {str(i): (10, int(n)) for i, n in enumerate(hard)}
    ours = {str(i): (10, int(n) + 1) for i, n in enumerate(hard)}
    assert error_rate_difference([ours], [theirs]) == (10.0, 10.0)
    assert error_rate_difference([theirs, ours], [theirs, theirs]) == (5.0, 5.0)
    low, high = error_rate_interval(theirs)
    assert high - low > 5


def test_other_utterances_are_refused():
    with pytest.raises(ValueError, match="the same utterances"):
        error_rate_difference([{"a": (1, 0)}], [{"b": (1, 0)}])


def test_one_utterance_has_no_interval():
    assert np.isnan(error_rate_interval({"a": (3, 1)})).all()


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_expected_best_is_the_mean_over_all_draws(trials):
    values = [7.0, 3.0, 3.0, 11.0]
    draws = itertools.product(values, repeat=trials)
    truth = np.mean([min(draw) for draw in draws])
    assert expected_best(values, trials) == pytest.approx(truth, rel=1e-12)


def test_utterances_without_words_give_no_rate():
    assert all(map(math.isnan, error_rate_interval({"a": (0, 2), "b": (0, 14)})))
    # Where neither of the two drawn has words, there is nothing to divide by.
    assert error_rate_interval({"a": (0, 3), "b": (10, 1)}) == (10.0, 40.0)
    counts = {"a": (0, 3), "b": (10, 1)}
    assert error_rate_difference([counts], [counts]) == (0.0, 0.0)
