"""Measuring: percentiles, pairs, memory, and the refusal to compare unequal things."""

import time

import pytest
import torch

from benchmarks import suites
from benchmarks.cases import Contest
from benchmarks.timing import (
    Disagreement,
    difference,
    paired_seconds,
    peak_bytes,
    require_agreement,
    spread,
)
from hyperconformer.training.results import kept_bytes


def contest(got, expected, **times):
    """Two idle functions whose outputs are as given."""
    return Contest(
        "tiny",
        "forward",
        "peer",
        frames=1,
        ours=lambda: time.sleep(times.get("ours", 0)),
        theirs=lambda: time.sleep(times.get("theirs", 0)),
        check=lambda: ([torch.tensor(got)], [torch.tensor(expected)]),
    )


def test_percentiles_interpolate():
    assert spread([10.0]) == (10.0, 10.0, 10.0)
    assert spread([4.0, 0.0, 2.0]) == pytest.approx((0.8, 2.0, 3.2))


def test_difference():
    a = torch.tensor([3.0, 4.0])
    assert difference([a], [a]) == 0.0
    assert difference([a, a * 1.1], [a, a]) == pytest.approx(0.1, rel=1e-5)
    assert difference([a], [a[:1]]) == float("inf")
    assert difference([a], [a, a]) == float("inf")
    assert difference([a * float("nan")], [a]) == float("inf")


def test_no_speed_up_without_agreement():
    with pytest.raises(Disagreement, match="tiny: outputs differ by 1.0e-01"):
        require_agreement([torch.tensor(1.1)], [torch.tensor(1.0)], 1e-2, "tiny")
    with pytest.raises(Disagreement, match="no speed-up"):
        suites.race("mixing", contest([1.0], [1.1]), budget_s=0)
    with pytest.raises(Disagreement):
        suites.race("mixing", contest([float("nan")], [1.0]), budget_s=0)


def test_a_refused_contest_is_named_and_left_out(capsys):
    contests = [contest([1.0], [2.0]), contest([1.0], [1.0])]
    refused, row = suites.races("mixing", contests, budget_s=0)
    assert refused is None
    assert row.case == "tiny" and row.difference == 0.0
    assert "REFUSED tiny, forward, against peer" in capsys.readouterr().err


def test_ratio_is_the_peers_time_over_ours():
    row = suites.race("mixing", contest([1.0], [1.0], ours=0.01, theirs=0.04), 0)
    assert row.rounds == 3
    # Sleeping takes at least as long as asked, and a busy machine adds to both.
    assert row.p50_ms >= 10 and row.peer_p50_ms >= 40
    assert 1 < row.ratio_p50 < 4.5
    assert row.ratio_p20 <= row.ratio_p50 <= row.ratio_p80


def test_runs_are_paired_and_take_turns():
    calls = []
    pairs = paired_seconds(lambda: calls.append(0), lambda: calls.append(1), 0, 4)
    assert len(pairs) == 4
    assert calls == [0, 1, 0, 1, 1, 0, 0, 1, 1, 0]


def test_kept_bytes_count_each_storage_once_and_no_parameter():
    linear = torch.nn.Linear(100, 50)
    x = torch.randn(20, 100, requires_grad=True)

    def forward():
        return linear(x).relu() + linear(x)

    # The input twice, but it is one; the output of relu.
    assert kept_bytes(forward, linear.parameters()) == 4 * (20 * 100 + 20 * 50)
    with_weights = 4 * (20 * 100 + 20 * 50 + 100 * 50)
    assert kept_bytes(forward) == with_weights


def test_peak_bytes_are_those_alive_at_once():
    x = torch.randn(1 << 18)

    def function():
        one = x + 1
        two = one + 1
        del one
        return two + 1

    # Two tensors of 1 MiB at a time, and small change for the scalars.
    assert 0 <= peak_bytes(function) - 2 * (1 << 20) < 1000
