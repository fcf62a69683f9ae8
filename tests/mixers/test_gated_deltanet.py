"""What is Gated DeltaNet's own; the contract's tests cover the rest."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.gated_deltanet import GatedDeltaNet
from hyperconformer.ops.gated_delta_rule import reference


def by_hand(mixer, x):
    """One utterance (T, D) through the paper's formulas, frame by frame."""
    memory = mixer.forwards
    projected = x @ mixer.to_qkv.weight.T
    taps = memory.taps
    mixed = torch.stack(
        [
            sum(
                projected[t - lag] * taps[:, -1 - lag]
                for lag in range(taps.shape[1])
                if t >= lag
            )
            for t in range(len(x))
        ]
    )
    q, k, v = F.silu(mixed).split(memory.widths, dim=-1)
    q, k, v = (y.unflatten(-1, (memory.num_heads, -1)) for y in (q, k, v))
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    step = torch.log1p(torch.exp(x @ memory.decay.weight.T + memory.step_bias))
    log_decay = -memory.log_rate.exp() * step
    strength = memory.max_strength / (1 + torch.exp(-x @ memory.strength.weight.T))
    given = (y.transpose(0, 1)[None] for y in (q, k, v, log_decay, strength))
    out, _ = reference.gated_delta_rule(*given)
    out = out[0].transpose(0, 1)
    out = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm_weight
    return (out.flatten(1) * F.silu(x @ mixer.gate.weight.T)) @ mixer.to_out.weight.T


@pytest.mark.parametrize(
    "options",
    [{}, {"expand_v": 2, "conv_size": 1}, {"allow_neg_eigval": True, "conv_size": 3}],
)
def test_equals_the_formulas(options):
    mixer = GatedDeltaNet(12, 2, causal=True, **options).double()
    x = torch.randn(40, 12).double()
    assert (mixer(x[None])[0][0] - by_hand(mixer, x)).abs().max() < 1e-12


def test_the_other_direction_is_the_first_one_reversed():
    mixer = GatedDeltaNet(12, 2).double()
    mixer.backwards.load_state_dict(mixer.forwards.state_dict())
    x = torch.randn(2, 9, 12).double()
    assert (mixer(x.flip(1))[0].flip(1) - mixer(x)[0]).abs().max() < 1e-12


def test_the_memory_is_constant():
    mixer = GatedDeltaNet(12, 2, causal=True, expand_v=2)
    state = mixer.init_state(3)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {
        "frames_seen": (3,),
        "recent": (3, 3, 48),
        "memory": (3, 2, 6, 12),
    }
    _, state = mixer(torch.randn(3, 70, 12), state=state)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": 5}, "num_heads must divide d_model = 12, got 5"),
        ({"expand_v": 0}, "expand_v must be >= 1, got 0"),
        ({"conv_size": 0}, "conv_size must be >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GatedDeltaNet(**{"d_model": 12, "num_heads": 2, **options})


def test_what_it_cannot_honour_is_refused():
    mixer, x = GatedDeltaNet(12, 2, causal=True), torch.randn(1, 6, 12)
    with pytest.raises(ValueError, match="bounded left context"):
        mixer(x, chunk=ChunkRule(2, 1))
    with pytest.raises(ValueError, match="padding must follow"):
        mixer(x, padding_mask=torch.tensor([[True, False, False, False, False, False]]))
    with pytest.raises(ValueError, match="only with causal=True"):
        GatedDeltaNet(12, 2).init_state(1)
