"""Augmentation: another speed, another vocal tract, a telephone."""

import pytest
import torch
from speechbrain.augment.freq_domain import SpectrogramDrop
from speechbrain.augment.time_domain import SpeedPerturb as StockSpeedPerturb
from speechbrain.lobes.features import Fbank

from hyperconformer.training.augment import (
    RandomGain,
    SpeedPerturb,
    Telephone,
    TimeMask,
    VocalTractWarp,
)


@pytest.mark.parametrize("percent", [80, 92, 116])
def test_plays_at_that_speed(percent):
    wavs = tone(400).expand(2, -1)
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


def tone(hz, rate_hz=16000):
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(rate_hz) / rate_hz)


def loudness_db(wav):
    """In the middle half, where no filter rings in or out."""
    quarter = len(wav) // 4
    return 10 * torch.log10(wav[quarter:-quarter].square().mean()).item()


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_a_telephone_passes_its_band_only(rate_hz):
    telephone = Telephone(1.0, rate_hz)
    for hz, least, most in ((1000, -0.5, 0.5), (60, -60, -20), (300, -4, -2)):
        wav = tone(hz, rate_hz)
        heard = telephone(wav.unsqueeze(0))[0]
        assert heard.shape == wav.shape and heard.abs().max() <= 1.01
        assert least <= loudness_db(heard) - loudness_db(wav) <= most
    if rate_hz > 8000:
        heard = telephone(tone(5000, rate_hz).unsqueeze(0))[0]
        assert loudness_db(heard) < -40


def test_a_telephone_has_eight_bits():
    heard = Telephone(1.0, 8000)(torch.randn(1, 8000).clamp(-1, 1))
    assert 200 < len(heard.unique()) <= 256


def test_a_telephone_is_taken_that_often():
    wavs = torch.randn(2, 400)
    telephone = Telephone(0.3, 16000)
    sent = sum(not torch.equal(telephone(wavs), wavs) for _ in range(400))
    assert 80 < sent < 160  # 120 +- 4.4 standard deviations
    assert Telephone(0.0, 16000)(wavs) is wavs


def test_impossible_telephones_are_refused():
    with pytest.raises(ValueError, match="probability"):
        Telephone(1.5, 16000)
    with pytest.raises(ValueError, match="8000 Hz or more, got 4000"):
        Telephone(0.5, 4000)


def test_a_short_utterance_is_not_masked_whole():
    for frames, share, most in ((400, 1.0, 2 * 29), (400, 0.05, 2 * 19), (40, 0.2, 14)):
        masked = TimeMask(30, 2, share)(torch.ones(200, frames, 5))
        lost = (masked[..., 0] == 0).sum(1)
        assert 0.7 * most < lost.max() <= most
        assert masked[..., 0].equal(masked[..., 4])  # all filters of a frame


def test_what_is_too_short_to_mask_stays():
    for frames in (1, 2, 9):
        assert TimeMask(30, 3, 0.2)(torch.ones(64, frames, 2)).eq(1).all()


def test_time_masks_without_a_bound_are_speechbrains():
    features = torch.randn(4, 100, 8)
    torch.manual_seed(0)
    expected = SpectrogramDrop(1, 20, 2, 2)(features.clone())
    torch.manual_seed(0)
    assert TimeMask(20, 2)(features.clone()).equal(expected)


@pytest.mark.parametrize("bad", [(1, 2, 0.5), (20, -1, 0.5), (20, 2, 0.0), (20, 2, 2)])
def test_impossible_time_masks_are_refused(bad):
    with pytest.raises(ValueError, match="time masks need"):
        TimeMask(*bad)


def heard_filter(hz):
    """Which of Fbank's 80 filters a tone is loudest in."""
    features = Fbank(sample_rate=16000, n_fft=512, n_mels=80)(tone(hz).unsqueeze(0))
    return features, features[0, 50].argmax().item()


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("hz", [1200, 3000])
def test_warping_moves_a_tone_to_its_frequency(hz, factor):
    features, _ = heard_filter(hz)
    warped = VocalTractWarp(0.1, 80, 16000).warp(features, torch.tensor([[factor]]))
    # What the warped features hold at f they read at f * factor.
    _, expected = heard_filter(hz / factor)
    assert abs(warped[0, 50].argmax().item() - expected) <= 1


def test_warping_keeps_the_ends_and_the_tempo():
    features = torch.randn(2, 7, 80)
    warp = VocalTractWarp(0.1, 80, 16000)
    assert torch.allclose(
        warp.warp(features, torch.ones(2, 1)), features, atol=1e-3, rtol=0
    )
    # An event in time stays there, and a flat spectrum stays flat.
    flat = torch.zeros(1, 7, 80)
    flat[:, 3] = 1.0
    assert torch.allclose(warp.warp(flat, torch.tensor([[1.1]])), flat)


def test_each_utterance_has_its_own_factor():
    features = torch.randn(1, 5, 80).expand(4, -1, -1)
    warped = VocalTractWarp(0.2, 80, 16000)(features)
    assert not torch.equal(warped[0], warped[1])
    assert VocalTractWarp(0, 80, 16000)(features) is features


def test_impossible_warps_are_refused():
    with pytest.raises(ValueError, match="0 to 0.5"):
        VocalTractWarp(1.5, 80, 16000)


def test_gains_are_uniform_in_decibels_and_differ_between_utterances():
    wavs = torch.ones(4000, 2)
    gains_db = 20 * RandomGain(-30, 6)(wavs).log10()
    assert torch.equal(gains_db[:, 0], gains_db[:, 1])
    assert -30 <= gains_db.min() < -29 and 5 < gains_db.max() <= 6
    assert abs(gains_db.mean() + 12) < 0.6
    assert RandomGain(0, 0)(wavs) is wavs


@pytest.mark.parametrize("bad", [(6, -30), (float("nan"), 0), (0, float("inf"))])
def test_impossible_gains_are_refused(bad):
    with pytest.raises(ValueError, match="lowest and a highest"):
        RandomGain(*bad)
