"""The level of utterances and of streams."""

import math

import pytest
import torch

from hyperconformer.model.level import (
    FORGETTING_DB_PER_S,
    SPEECH_ABOVE_NOISE_DB,
    init_running_level,
    running_level,
    utterance_level,
)

FRAMES_PER_S, SILENCE = 100, -100.0
FORGOTTEN = FORGETTING_DB_PER_S / FRAMES_PER_S


def level_of(log_mels, memory=None):
    memory = init_running_level(len(log_mels)) if memory is None else memory
    return running_level(log_mels, memory, FRAMES_PER_S, SILENCE)


def recording(batch=2, frames=400):
    """Noise and speech by turns, with digital silence before, between and after."""
    loudness = torch.randint(4, (batch, frames // 20)).repeat_interleave(20, 1)
    log_mels = -80 + 20 * loudness[..., None] + 5 * torch.randn(batch, frames, 8)
    log_mels[loudness == 0] = SILENCE
    return log_mels


def flat(*powers):
    return torch.tensor(powers).view(1, -1, 1).expand(-1, -1, 4)


def test_the_level_of_an_utterance_is_its_mean_power():
    log_mels, lengths = recording(), torch.tensor([400, 123])
    for decibels in (10, 20):
        level = utterance_level(log_mels, lengths, decibels)
        for row, length in enumerate(lengths):
            power = (10 ** (log_mels[row, :length].double() / decibels)).mean()
            expected = decibels * power.log10().item()
            assert level[row].item() == pytest.approx(expected, abs=1e-3)


def test_the_running_level_is_what_its_formula_says():
    log_mels = recording()
    level, memory = level_of(log_mels)
    for row, frames in enumerate(log_mels.double()):
        loudest, quietest = -math.inf, math.inf
        for t, frame in enumerate(frames):
            power = 10 * (10 ** (frame / 10)).mean().log10().item()
            loudest, quietest = loudest - FORGOTTEN, quietest + FORGOTTEN
            if frame.max() > SILENCE:
                loudest, quietest = max(loudest, power), min(quietest, power)
            noise = power if quietest == math.inf else quietest
            expected = max(loudest, noise + SPEECH_ABOVE_NOISE_DB)
            assert level[row, t].item() == pytest.approx(expected, abs=1e-3)
        assert memory[row].tolist() == pytest.approx([loudest, quietest], abs=1e-3)


def test_the_running_level_of_pieces_is_that_of_the_whole():
    log_mels = recording(frames=6000)
    whole, end = level_of(log_mels)
    memory, pieces = init_running_level(2), []
    for piece in log_mels.split([1, 63, 1, 900, 5035], dim=1):
        before = memory.clone()
        level, after = level_of(piece, memory)
        assert torch.equal(memory, before)
        memory = after
        pieces.append(level)
    assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-3
    assert (memory - end).abs().max() < 1e-3


def test_the_running_level_knows_no_later_frame():
    log_mels = recording()
    whole, _ = level_of(log_mels)
    for cut in range(0, 400, 37):
        changed = log_mels.clone()
        changed[:, cut:] += 50
        assert torch.equal(level_of(changed)[0][:, :cut], whole[:, :cut])
        assert not torch.equal(level_of(changed)[0], whole)


def test_the_running_level_follows_a_gain_exactly():
    log_mels = 5 * torch.randn(2, 400, 8) - 40
    louder = level_of(log_mels + 30)[0] - 30
    assert (louder - level_of(log_mels)[0]).abs().max() < 1e-4


def test_noise_stays_quiet_before_speech_and_in_a_long_pause():
    frames = flat(*[-60.0] * 10, *[-15.0] * 50, *[-60.0] * 3000)
    above = (frames[..., :1] - level_of(frames)[0]).flatten()
    expected = [-SPEECH_ABOVE_NOISE_DB, 0, -45 + FORGOTTEN, -SPEECH_ABOVE_NOISE_DB]
    assert above[[9, 59, 60, -1]].tolist() == pytest.approx(expected, abs=1e-3)


def test_a_stream_that_begins_within_a_word_finds_its_level_in_the_first_pause():
    level = level_of(flat(-15.0, -15.0, -60.0, -15.0))[0].flatten()
    assert level[1].item() == pytest.approx(-15 + SPEECH_ABOVE_NOISE_DB)
    assert level[3].item() == pytest.approx(-15)


def test_digital_silence_is_quiet_and_changes_no_level():
    silence = [SILENCE] * 200
    level = level_of(flat(*silence, -70.0, -10.0, *silence, -10.0))[0].flatten()
    expected = [SILENCE + SPEECH_ABOVE_NOISE_DB, -70 + SPEECH_ABOVE_NOISE_DB, -10.0]
    expected += [-10 - 200 * FORGOTTEN, -10.0]
    level = level[[199, 200, 201, 401, 402]].tolist()
    assert level == pytest.approx(expected, abs=1e-3)
