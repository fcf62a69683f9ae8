"""The gated delta rule: chunks of frames against the recurrence."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.ops.gated_delta_rule import gated_delta_rule, reference
from tests.goldens import load_golden, relative_error, section

LENGTHS = [1, 2, 31, 32, 33, 100]


def inputs(frames, dtype=torch.float64):
    q, k = (F.normalize(torch.randn(2, 3, frames, 6), dim=-1) for _ in range(2))
    v, memory = torch.randn(2, 3, frames, 4), torch.randn(2, 3, 6, 4)
    log_decay, strength = -2 * torch.rand(2, 3, frames), 2 * torch.rand(2, 3, frames)
    return [x.to(dtype) for x in (q, k, v, log_decay, strength, memory)]


@pytest.mark.parametrize("frames", LENGTHS)
def test_equals_the_recurrence(frames):
    *given, memory = inputs(frames)
    for start in (None, memory):
        expected = reference.gated_delta_rule(*given, memory=start)
        for got, wanted in zip(gated_delta_rule(*given, memory=start), expected):
            torch.testing.assert_close(got, wanted)


def test_equals_flash_linear_attention(goldens_folder):
    """Its plain recurrence computed in float32: 45 frames, each a few roundings."""
    _, arrays = load_golden(goldens_folder, "fla_gated_delta_rule")
    given = section(arrays, "in")
    out, memory = gated_delta_rule(**given)
    assert relative_error(out, arrays["out/y"]) < 45 * torch.finfo(torch.float32).eps
    assert relative_error(memory, arrays["out/memory"]) < 45 * 2**-23


def test_steps_equal_the_whole():
    *given, memory = inputs(50)
    whole, last = gated_delta_rule(*given, memory=memory)
    parts = []
    for begin, end in ((0, 1), (1, 34), (34, 50)):
        step = (x[:, :, begin:end] for x in given)
        out, memory = gated_delta_rule(*step, memory=memory)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(memory, last)


def test_gradcheck():
    given = [x[:1, :1].requires_grad_() for x in inputs(5)]
    *first, memory = given
    assert torch.autograd.gradcheck(
        lambda *x: gated_delta_rule(*x[:-1], memory=x[-1]), (*first, memory)
    )


def test_a_frame_without_strength_and_decay_is_no_time():
    q, k, v, log_decay, strength, memory = inputs(9)
    log_decay[:, :, 4:], strength[:, :, 4:] = 0.0, 0.0
    given = (q, k, v, log_decay, strength)
    _, expected = gated_delta_rule(*(x[:, :, :4] for x in given), memory=memory)
    torch.testing.assert_close(gated_delta_rule(*given, memory=memory)[1], expected)


def test_equal_keys_and_deep_decays_stay_exact_in_single_precision():
    """Powers of the triangular matrix would reach 1e8 here, and e^g overflow."""
    _, k, v, _, strength, _ = inputs(96)
    k, strength = k[:, :, :1].expand_as(k), torch.ones_like(strength)
    for log_decay in (torch.zeros_like(strength), torch.full_like(strength, -50.0)):
        given = (k, k, v, log_decay, strength)
        expected, _ = reference.gated_delta_rule(*given)
        got, _ = gated_delta_rule(*(x.float() for x in given))
        assert relative_error(got, expected) < 96 * torch.finfo(torch.float32).eps


def test_sums_are_held_in_single_precision():
    given = inputs(40, torch.bfloat16)
    out, memory = gated_delta_rule(*given[:-1], memory=given[-1])
    assert out.dtype == memory.dtype == torch.float32


class OfEverySecondFrame(torch.nn.Module):
    def forward(self, x):
        x = x[:, :, ::2]
        return gated_delta_rule(x, x, x, -x[..., 0].abs(), x[..., 1].sigmoid())


def test_export_for_any_number_of_frames_is_refused():
    """PyTorch itself would only narrow the range of lengths, and say nothing."""
    any_length = {"x": {2: torch.export.Dim.DYNAMIC}}
    with pytest.raises(ValueError, match="a fixed number of frames"):
        torch.export.export(
            OfEverySecondFrame(), (torch.randn(1, 1, 50, 2),), dynamic_shapes=any_length
        )


def test_shapes_are_checked():
    *given, memory = inputs(5)
    with pytest.raises(ValueError, match="must be .* got .*3, 4, 6"):
        gated_delta_rule(given[0][:, :, :4], *given[1:])
    with pytest.raises(ValueError, match="and .*2, 3, 4, 6"):
        gated_delta_rule(*given, memory=memory.mT)
