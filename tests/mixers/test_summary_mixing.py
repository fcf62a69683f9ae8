"""SummaryMixing: the paper's equation, its causal and chunked forms, streaming."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.core.masks import ChunkRule, chunk_mask, lengths_to_padding_mask
from hyperconformer.mixers.summary_mixing import SummaryMixing
from hyperconformer.ops.summary_mixing import spread_over_frames, summary_mean
from hyperconformer.ops.summary_mixing.reference import summary_mean_reference

RULES = [None, ChunkRule(4), ChunkRule(4, 0), ChunkRule(3, 2), ChunkRule(20, 1)]
MODES = [(chunk, causal) for chunk in RULES for causal in (False, True)]
STREAMING = [mode for mode in MODES if mode != (None, False)]


def make(causal=False, **options):
    return SummaryMixing(16, 4, causal=causal, **options).double()


def frames(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [None, [14, 9, 1]])
@pytest.mark.parametrize(("chunk", "causal"), MODES)
def test_means_equal_reference(chunk, causal, lengths):
    summaries = frames(3, 14, 5)
    mask = None
    if lengths is not None:
        mask = lengths_to_padding_mask(torch.tensor(lengths), 14)
        summaries = summaries.masked_fill(mask.unsqueeze(-1), torch.nan)
    rule = {"padding_mask": mask, "chunk": chunk, "causal": causal}
    means, _ = summary_mean(summaries, **rule)
    got = spread_over_frames(means, 14, chunk=chunk, causal=causal).expand(-1, 14, -1)
    expected = summary_mean_reference(summaries, **rule)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("chunk", "causal"), MODES)
def test_gradient(chunk, causal):
    mixer = SummaryMixing(4, 2, causal=causal).double()
    mask = lengths_to_padding_mask(torch.tensor([7, 3]), 7)
    x = frames(2, 7, 4).requires_grad_()

    def run(x, *_):
        return mixer(x, padding_mask=mask, chunk=chunk)[0]

    assert torch.autograd.gradcheck(run, (x, *mixer.parameters()))


def test_the_equation():
    # One head: h_t = c(f(x_t), mean of s), the three being linear layers with GELU.
    mixer = SummaryMixing(6, 1, local_size=5, summary_size=7).double()
    x = frames(1, 9, 6)
    local = F.gelu(x @ mixer.local.weight[0].T + mixer.local.bias)
    summary = F.gelu(x @ mixer.summary.weight[0].T + mixer.summary.bias).mean(1)
    both = torch.cat([local, summary[:, None].expand(-1, 9, -1)], dim=-1)
    matrix = torch.cat(
        [mixer.combine_local.weight, mixer.combine_summary.weight], dim=1
    )
    expected = F.gelu(both @ matrix.T + mixer.combine_summary.bias)
    torch.testing.assert_close(mixer(x)[0], expected, rtol=0, atol=1e-12)


def test_heads_read_their_own_slice():
    mixer = make()
    x = frames(1, 5, 16)
    changed = x.clone()
    changed[..., 4:8] += 1
    difference = (mixer.summary(changed) - mixer.summary(x)).abs().amax((0, 1))
    assert (difference[4:8] > 0).all()
    assert (difference[:4] == 0).all() and (difference[8:] == 0).all()


def test_without_a_local_function_every_frame_is_the_summary():
    mixer = make(local_size=0)
    y, _ = mixer(frames(2, 6, 16))
    assert y.shape == (2, 6, 16)
    assert torch.equal(y, y[:, :1].expand_as(y))


@pytest.mark.parametrize(("chunk", "causal"), MODES)
def test_batch_equals_alone_and_nan_in_padding_reaches_nothing(chunk, causal):
    mixer = make(causal)
    lengths = torch.tensor([11, 6, 1])
    mask = lengths_to_padding_mask(lengths, 11)
    x = frames(3, 11, 16).masked_fill(mask.unsqueeze(-1), torch.nan).requires_grad_()
    y, _ = mixer(x, padding_mask=mask, chunk=chunk)
    assert y.isfinite().all()
    for row, length in enumerate(lengths):
        alone, _ = mixer(x[row : row + 1, :length], chunk=chunk)
        torch.testing.assert_close(y[row : row + 1, :length], alone, rtol=0, atol=1e-12)
    y.sum().backward()
    gradients = [x.grad, *(p.grad for p in mixer.parameters())]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (x.grad[mask] == 0).all()


@pytest.mark.parametrize(("chunk", "causal"), STREAMING)
def test_each_frame_sees_what_the_rule_says(chunk, causal):
    num_frames = 13
    hidden = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    if chunk is not None:
        hidden |= chunk_mask(num_frames, chunk)
    if causal:
        hidden |= torch.ones_like(hidden).triu(1)
    mixer = make(causal)
    x = frames(1, num_frames, 16)
    y, _ = mixer(x, chunk=chunk)
    for j in range(num_frames):
        changed = x.clone()
        changed[:, j] += 1
        moved = (mixer(changed, chunk=chunk)[0] - y).abs().amax((0, 2)) > 1e-12
        assert moved.tolist() == (~hidden[:, j]).tolist()


@pytest.mark.parametrize("chunks_in_a_step", [1, 2])
@pytest.mark.parametrize(("chunk", "causal"), STREAMING)
def test_steps_equal_the_whole(chunk, causal, chunks_in_a_step):
    mixer = make(causal)
    x = frames(2, 17, 16)
    mask = lengths_to_padding_mask(torch.tensor([17, 10]), 17)
    whole, _ = mixer(x, chunk=chunk, padding_mask=mask)
    size = chunks_in_a_step * (1 if chunk is None else chunk.chunk_frames)
    state = mixer.init_state(2, chunk=chunk)
    outputs = []
    for start in range(0, 17, size):
        before = state["sums"].clone()
        step = slice(start, start + size)
        y, new_state = mixer(
            x[:, step], chunk=chunk, padding_mask=mask[:, step], state=state
        )
        assert torch.equal(state["sums"], before)
        state = new_state
        outputs.append(y)
    real = ~mask
    streamed = torch.cat(outputs, dim=1)
    torch.testing.assert_close(streamed[real], whole[real], rtol=0, atol=1e-12)


def test_the_state_stays_small_and_keeps_its_shape():
    mixer = make()
    state = mixer.init_state(2, chunk=ChunkRule(3, 2))
    shapes = [tuple(state["sums"].shape)]
    for _ in range(4):
        _, state = mixer(frames(2, 3, 16), chunk=ChunkRule(3, 2), state=state)
        shapes.append(tuple(state["sums"].shape))
    assert shapes == [(2, 2, 17)] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_long_correlated_input_in_half_precision(dtype, causal):
    mixer = SummaryMixing(8, 2, causal=causal)
    x = torch.randn(1, 1, 8).expand(1, 30000, 8) * 16
    with torch.autocast("cpu", dtype=dtype):
        y, _ = mixer(x)
        summaries = mixer.activation(mixer.summary(x))
    assert y.isfinite().all()
    # The sum would not fit in float16.
    assert summaries.double().sum(1).max() > torch.finfo(torch.float16).max
    means, _ = summary_mean(summaries.to(dtype), causal=causal)
    exact = summaries.to(dtype).double().mean(1)
    torch.testing.assert_close(means[:, -1].double(), exact, rtol=1e-3, atol=1e-4)


def test_refusals():
    mixer = make()
    with pytest.raises(ValueError, match="needs causal=True or a chunk rule"):
        mixer(frames(1, 3, 16), state=mixer.init_state(1))
    with pytest.raises(ValueError, match=r"2 chunks is needed .* got one with 1"):
        mixer(frames(1, 3, 16), chunk=ChunkRule(3, 2), state=mixer.init_state(1))
    with pytest.raises(ValueError, match="at least one frame"):
        mixer(frames(1, 0, 16))
    with pytest.raises(ValueError, match="multiples of num_heads=4, got 6"):
        make(summary_size=6)
