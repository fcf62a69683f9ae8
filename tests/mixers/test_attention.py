"""Attention in steps, computed here, against SpeechBrain's modules."""

import pytest
import torch
from speechbrain.nnet import attention

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.registry import build_mixer


def stock_output(name, mixer, x):
    """What SpeechBrain's own module makes of x with the mixer's parameters."""
    if name == "regularMHA":
        stock, more = attention.MultiheadAttention(2, 24), []
    elif name == "RoPEMHA":
        stock, more = attention.RoPEMHA(24, 2), []
    else:
        stock = attention.RelPosMHAXL(24, 2)
        more = [attention.RelPosEncXL(24)(x)]
    stock.load_state_dict(mixer.state_dict(), strict=True)
    return stock.eval()(x, x, x, *more, return_attn_weights=False)


@pytest.mark.parametrize("name", ["regularMHA", "RelPosMHAXL", "RoPEMHA"])
@pytest.mark.parametrize("frames", [1, 2, 37])
def test_a_step_of_one_chunk_is_speechbrains_full_context(name, frames):
    mixer = build_mixer(name, d_model=24, num_heads=2).eval()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, rule = torch.randn(2, frames, 24), ChunkRule(frames, left_chunks=2)
    state = mixer.init_state(2, chunk=rule)
    y, _ = mixer(x, chunk=rule, state=state)
    expected = stock_output(name, mixer, x)
    assert (y - expected).abs().max() < 1e-5
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("name", ["regularMHA", "RelPosMHAXL", "RoPEMHA"])
def test_state_for_another_rule_is_refused(name):
    mixer, x = build_mixer(name, d_model=24, num_heads=2), torch.randn(1, 4, 24)
    state = mixer.init_state(1, chunk=ChunkRule(4, 1))
    with pytest.raises(ValueError, match="8 past frames is needed .* got one of 4"):
        mixer(x, chunk=ChunkRule(4, 2), state=state)
    with pytest.raises(ValueError, match="left_chunks, which bounds"):
        mixer(x, chunk=ChunkRule(4), state=state)
