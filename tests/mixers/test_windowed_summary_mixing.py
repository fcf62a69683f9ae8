"""Windowed SummaryMixing: its equation, its windows under each rule, streaming."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.mixers.windowed_summary_mixing import WindowedSummaryMixing
from hyperconformer.ops.summary_mixing import window_mean
from hyperconformer.ops.summary_mixing.reference import summary_mean_reference

RULES = [None, ChunkRule(4), ChunkRule(4, 0), ChunkRule(3, 2), ChunkRule(20, 1)]
MODES = [(chunk, causal) for chunk in RULES for causal in (False, True)]


def frames(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("radius", [1, 5, 30])
@pytest.mark.parametrize("lengths", [None, [14, 9, 1]])
@pytest.mark.parametrize(("chunk", "causal"), MODES)
def test_means_equal_reference(chunk, causal, lengths, radius):
    summaries = frames(3, 14, 5)
    mask = None
    if lengths is not None:
        mask = lengths_to_padding_mask(torch.tensor(lengths), 14)
        summaries = summaries.masked_fill(mask.unsqueeze(-1), torch.nan)
    rule = {"padding_mask": mask, "chunk": chunk, "causal": causal}
    means, _ = window_mean(summaries, radius, **rule)
    expected = summary_mean_reference(summaries, radius=radius, **rule)
    torch.testing.assert_close(means, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("chunk", "causal"), MODES)
def test_gradient(chunk, causal):
    mixer = WindowedSummaryMixing(4, 2, causal=causal, window_radius=2).double()
    mask = lengths_to_padding_mask(torch.tensor([7, 3]), 7)
    x = frames(2, 7, 4).requires_grad_()

    def run(x, *_):
        return mixer(x, padding_mask=mask, chunk=chunk)[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


def test_the_equation():
    # One head: h_t = c(f(x_t), mean of s, mean of s near t).
    mixer = WindowedSummaryMixing(
        6, 1, local_size=5, summary_size=7, window_radius=2
    ).double()
    x = frames(1, 9, 6)
    local = F.gelu(x @ mixer.local.weight[0].T + mixer.local.bias)
    summary = F.gelu(x @ mixer.summary.weight[0].T + mixer.summary.bias)
    near = [summary[:, max(t - 2, 0) : t + 3].mean(1) for t in range(9)]
    parts = [local, summary.mean(1, keepdim=True).expand(-1, 9, -1)]
    parts = torch.cat([*parts, torch.stack(near, dim=1)], dim=-1)
    combiners = mixer.combine_local, mixer.combine_summary, mixer.combine_window
    matrix = torch.cat([each.weight for each in combiners], dim=1)
    expected = F.gelu(parts @ matrix.T + mixer.combine_summary.bias)
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [2, 9])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_causal_steps_of_any_size_equal_the_whole(size, radius):
    mixer = WindowedSummaryMixing(8, 2, causal=True, window_radius=radius).double()
    x = frames(2, 13, 8)
    state, steps = mixer.init_state(2), []
    for step in x.split(size, dim=1):
        y, state = mixer(step, state=state)
        steps.append(y)
    whole, _ = mixer(x)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0, -1])
def test_a_window_without_neighbours_is_refused(radius):
    with pytest.raises(
        ValueError, match=f"window_radius must be at least 1, got {radius}"
    ):
        WindowedSummaryMixing(8, 2, window_radius=radius)
