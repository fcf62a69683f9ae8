"""The learning-rate schedule."""

import pytest
import torch

from hyperconformer.training.schedule import WarmupCosine


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_rises_to_the_peak_and_falls_to_the_end():
    schedule = WarmupCosine(0.2, warmup_fraction=0.25, final_fraction=0.1)
    target, rates = optimizer(), []
    for update in range(1, 401):
        schedule.progress = update / 400
        rates.append(schedule(target))
    assert target.param_groups[0]["lr"] == rates[-1]
    assert max(rates) == rates[99] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.02)
    assert rates[:100] == sorted(rates[:100])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    schedule.progress = 1.1
    assert schedule(target) == pytest.approx(0.02)


def test_resumes_where_it_was(tmp_path):
    first, second = (WarmupCosine(1.0, 0.1) for _ in range(2))
    first.progress = 0.4
    first._save(tmp_path / "state")
    second._load(tmp_path / "state", end_of_epoch=True)
    assert second(optimizer()) == first(optimizer()) == first.rate(0.4) > 0


def test_a_count_of_updates_from_an_older_checkpoint_is_no_fraction(tmp_path):
    torch.save({"n_steps": 200}, tmp_path / "state")
    schedule = WarmupCosine(1.0, 0.1)
    schedule._load(tmp_path / "state", end_of_epoch=True)
    assert schedule.progress == 0.0  # until the Brain says what it is


@pytest.mark.parametrize("bad", [{"warmup_fraction": 0}, {"final_fraction": 2}])
def test_fractions_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="got"):
        WarmupCosine(1.0, **bad)
