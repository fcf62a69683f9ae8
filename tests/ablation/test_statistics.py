"""Intervals and expected best results."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hyperconformer.ablation.statistics import (
    expected_best,
    holm,
    mean_interval,
    paired_p,
    verdict,
)
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


def test_the_interval_over_seeds_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(2).normal(8.0, 1.0, size=(2000, 5))
    ends = [mean_interval(list(values)) for values in draws]
    covered = sum(low <= 8.0 <= high for low, high in ends)
    # 1900 expected, with a standard deviation of 9.7; normal quantiles give 1757.
    assert 1860 <= covered <= 1940


def test_seeds_that_pair_are_compared_by_their_differences():
    ours, theirs = [8.1, 9.0, 12.2, 7.4], [8.6, 9.3, 12.9, 8.0]
    differences = [a - b for a, b in zip(ours, theirs)]
    truth = stats.ttest_rel(ours, theirs).pvalue
    assert paired_p(differences) == pytest.approx(truth, rel=1e-12)
    shifted = stats.ttest_rel(ours, [b + 1 for b in theirs]).pvalue
    assert paired_p(differences, margin=1.0) == pytest.approx(shifted, rel=1e-12)
    assert paired_p([0.5, 0.5]) == 0.0 and paired_p([0.5, 0.5], margin=0.5) == 1.0


def test_one_seed_decides_nothing():
    assert all(map(math.isnan, mean_interval([3.0])))
    assert math.isnan(paired_p([3.0]))
    assert verdict([-3.0], math.nan) == "undecided"


def test_holm_is_as_published():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_arms_that_equal_the_baseline_seldom_get_a_verdict():
    source, found, trials = np.random.default_rng(3), 0, 400
    for _ in range(trials):
        arms = source.normal(size=(7, 5)) - source.normal(size=5)
        adjusted = holm([paired_p(list(arm)) for arm in arms])
        found += any(
            verdict(list(arm), p) != "undecided" for arm, p in zip(arms, adjusted)
        )
    # At most 5 % expected; without correction about 20 %.
    assert found / trials < 0.08


@pytest.mark.parametrize(
    "differences, p_value, margin, said",
    [
        ([-0.5, -0.7], 0.04, 0.0, "holds"),
        ([0.5, 0.7], 0.04, 0.0, "does not hold"),
        ([0.5, 0.7], 0.04, 1.0, "holds"),
        ([1.5, 1.7], 0.04, 1.0, "does not hold"),
        ([-0.5, -0.7], 0.06, 1.0, "undecided"),
    ],
)
def test_a_verdict_follows_the_rule(differences, p_value, margin, said):
    assert verdict(differences, p_value, margin) == said
