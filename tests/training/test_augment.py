"""Speed perturbation."""

import pytest
import torch
from speechbrain.augment.time_domain import SpeedPerturb as StockSpeedPerturb

from hyperconformer.training.augment import SpeedPerturb


@pytest.mark.parametrize("percent", [80, 92, 116])
def test_plays_at_that_speed(percent):
    time = torch.arange(16000) / 16000
    wavs = torch.sin(2 * torch.pi * 400 * time).expand(2, -1)
    faster = SpeedPerturb([percent])(wavs)
    assert abs(faster.shape[1] - 1600000 / percent) <= 1
    # A tone of 400 Hz is heard at 4 * percent Hz.
    spectrum = torch.fft.rfft(faster[0]).abs()
    heard = spectrum.argmax() * 16000 / faster.shape[1]
    assert abs(heard - 4 * percent) < 2


def test_agrees_with_speechbrain_where_the_rates_divide():
    wavs = torch.randn(2, 8000)
    expected = StockSpeedPerturb(16000, [80])(wavs)
    got = SpeedPerturb([80])(wavs)
    # The two resamplers differ in their filters, not in the signal.
    inside = slice(100, -100)
    correlation = torch.corrcoef(torch.stack([expected[0, inside], got[0, inside]]))
    assert got.shape == expected.shape and correlation[0, 1] > 0.99


def test_draws_every_speed():
    lengths = {
        SpeedPerturb([50, 100, 200])(torch.randn(1, 400)).shape[1] for _ in "a" * 50
    }
    assert lengths == {200, 400, 800}


@pytest.mark.parametrize("bad", [[], [100, 0]])
def test_impossible_speeds_are_refused(bad):
    with pytest.raises(ValueError, match="positive percents"):
        SpeedPerturb(bad)
