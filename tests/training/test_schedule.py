"""The learning-rate schedule."""

import pytest
import torch

from hyperconformer.training.schedule import WarmupCosine


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_rises_to_the_peak_and_falls_to_the_end():
    schedule = WarmupCosine(0.2, warmup_fraction=0.25, final_fraction=0.1)
    schedule.total_updates = 400
    target = optimizer()
    rates = [schedule(target) for _ in range(400)]
    assert target.param_groups[0]["lr"] == rates[-1]
    assert max(rates) == rates[99] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.02)
    assert rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert schedule(target) == pytest.approx(0.02)


def test_resumes_where_it_was(tmp_path):
    whole, first, second = (WarmupCosine(1.0, 0.1) for _ in range(3))
    for schedule in (whole, first, second):
        schedule.total_updates = 50
    target = optimizer()
    expected = [whole(target) for _ in range(50)]
    got = [first(target) for _ in range(20)]
    first._save(tmp_path / "state")
    second._load(tmp_path / "state", end_of_epoch=True)
    got += [second(target) for _ in range(30)]
    assert got == expected


@pytest.mark.parametrize("bad", [{"warmup_fraction": 0}, {"final_fraction": 2}])
def test_fractions_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="got"):
        WarmupCosine(1.0, **bad)
