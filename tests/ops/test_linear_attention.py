"""Linear attention: the running sums against every pair of frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.core.masks import ChunkRule
from hyperconformer.ops.linear_attention import (
    causal_linear_attention,
    causal_linear_attention_step,
    init_past,
    linear_attention,
    reference,
)

RULES = [None, ChunkRule(1), ChunkRule(4), ChunkRule(3, 0), ChunkRule(3, 6)]
BLINDSPOTS = [1, 2, 3, 8, 64, 100]


def inputs(frames, kv_heads=3, dtype=torch.float64):
    q = torch.randn(2, 3, frames, 4, dtype=dtype)
    # Some denominators fall below the floor of the causal form.
    k = torch.randn(2, kv_heads, frames, 4, dtype=dtype) * 3 - 5
    v = torch.randn(2, kv_heads, frames, 5, dtype=dtype)
    return q, k, v


@pytest.mark.parametrize("chunk", RULES, ids=str)
@pytest.mark.parametrize("frames", [1, 5, 17, 70])
def test_equals_the_formula(frames, chunk):
    for kv_heads in (1, 3):
        for mask in (None, torch.rand(2, frames) < 0.3):
            q, k, v = inputs(frames, kv_heads)
            options = {"key_padding_mask": mask, "chunk": chunk}
            expected = reference.linear_attention(q, k, v, **options)
            torch.testing.assert_close(linear_attention(q, k, v, **options), expected)


@pytest.mark.parametrize("blindspot", BLINDSPOTS)
@pytest.mark.parametrize("frames", [1, 5, 17, 150])
def test_causal_equals_the_formula(frames, blindspot):
    for kv_heads in (1, 3):
        for mask in (None, torch.rand(2, frames) < 0.3):
            q, k, v = inputs(frames, kv_heads)
            options = {"key_padding_mask": mask, "blindspot": blindspot}
            expected = reference.causal_linear_attention(q, k, v, **options)
            got = causal_linear_attention(q, k, v, **options)
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk", [None, ChunkRule(2), ChunkRule(2, 1)], ids=str)
def test_gradcheck(chunk):
    q, k, v = (x.requires_grad_() for x in inputs(5))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    assert torch.autograd.gradcheck(
        lambda *qkv: linear_attention(*qkv, key_padding_mask=mask, chunk=chunk),
        (q, k, v),
    )


@pytest.mark.parametrize("blindspot", [1, 3])
def test_causal_gradcheck(blindspot):
    q, k, v = (x.requires_grad_() for x in inputs(5))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    assert torch.autograd.gradcheck(
        lambda *qkv: causal_linear_attention(
            *qkv, blindspot=blindspot, key_padding_mask=mask
        ),
        (q, k, v),
    )


@pytest.mark.parametrize("blindspot", [1, 4])
def test_gradients_equal_the_formula_across_chunks(blindspot):
    """150 frames: halving, running sums and the floor all take part."""
    tensors = [x.requires_grad_() for x in inputs(150)]
    weight = torch.randn(2, 3, 150, 5, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            (path(*tensors, blindspot=blindspot) * weight).sum(), tensors
        )
        for path in (causal_linear_attention, reference.causal_linear_attention)
    ]
    for got, expected in zip(*gradients):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("blindspot", [1, 4])
def test_large_keys_do_not_overflow(blindspot):
    """The published exp(k) is infinite in float32 from 89 on; ours is exact."""
    q, k, v = inputs(100, dtype=torch.float32)
    k = k * 20 + 100
    published = reference.causal_linear_attention(q, k, v, blindspot=blindspot)
    assert not published.isfinite().all()
    k.requires_grad_()
    got = causal_linear_attention(q, k, v, blindspot=blindspot)
    expected = reference.causal_linear_attention(
        q.double(), k.double(), v.double(), blindspot=blindspot
    )
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    got.square().sum().backward()
    assert k.grad.isfinite().all()
    assert linear_attention(q, k, v).isfinite().all()


@pytest.mark.parametrize("blindspot", [1, 4])
def test_a_large_future_key_does_not_touch_the_past(blindspot):
    """Not even by underflow: a maximum over the future would erase the past."""
    q, k, v = inputs(90, dtype=torch.float32)
    before = causal_linear_attention(q, k, v, blindspot=blindspot)
    for cut in (1, 7, 40, 64, 89):
        changed = k.clone()
        changed[:, :, cut:] = 1000.0
        after = causal_linear_attention(q, changed, v, blindspot=blindspot)
        assert torch.equal(before[:, :, :cut], after[:, :, :cut])


def test_a_small_query_weight_on_a_large_key_counts():
    """exp(q) and exp(k) leave the range of float32, their product does not."""
    q = torch.tensor([[0.0, -200.0]]).expand(1, 1, 3, 2)
    k = torch.tensor([[0.0, 200.0]]).expand(1, 1, 3, 2)
    v = torch.tensor([[1.0], [2.0], [3.0]])[None, None]
    y = causal_linear_attention(q, k, v)
    torch.testing.assert_close(y.flatten(), torch.tensor([1.0, 1.5, 2.0]))


@pytest.mark.parametrize("chunk", RULES, ids=str)
def test_no_visible_key_gives_zero(chunk):
    q, k, v = (x.requires_grad_() for x in inputs(9))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0] = True
    y = linear_attention(q, k, v, key_padding_mask=mask, chunk=chunk)
    assert y[0].abs().max() == 0
    y = y + causal_linear_attention(q, k, v, key_padding_mask=mask)
    assert y[0].abs().max() == 0
    y.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_hidden_keys_may_hold_nan():
    q, k, v = inputs(80)
    mask = torch.zeros(2, 80, dtype=torch.bool)
    mask[1, 66:] = True

    def run():
        return torch.cat(
            [
                linear_attention(q, k, v, key_padding_mask=mask),
                linear_attention(q, k, v, key_padding_mask=mask, chunk=ChunkRule(7)),
                causal_linear_attention(q, k, v, key_padding_mask=mask),
                causal_linear_attention(q, k, v, key_padding_mask=mask, blindspot=8),
            ]
        )

    clean = run()
    k[1, :, 66:], v[1, :, 66:] = float("nan"), float("nan")
    k.requires_grad_(), v.requires_grad_()
    y = run()
    assert torch.equal(y, clean)
    y.sum().backward()
    assert k.grad.isfinite().all() and v.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    blindspot=st.integers(1, 9),
)
def test_steps_equal_the_whole(steps, blindspot):
    q, k, v = inputs(sum(steps), kv_heads=1)
    whole = causal_linear_attention(q, k, v, blindspot=blindspot)
    past, position, parts = init_past(k, v), 0, []
    for size in steps:
        part = slice(position, position + size)
        y, past = causal_linear_attention_step(
            *(x[:, :, part] for x in (q, k, v)),
            past=past,
            frames_seen=torch.full((2,), position),
            blindspot=blindspot,
        )
        parts.append(y)
        position += size
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


@pytest.mark.parametrize("blindspot", [1, 4])
def test_steps_with_large_keys_do_not_overflow(blindspot):
    """The largest key may lie in the closed buckets, the open one or the step."""
    q, k, v = inputs(40, dtype=torch.float32)
    k = k + torch.randperm(40)[:, None] * 50
    whole = causal_linear_attention(q, k, v, blindspot=blindspot)
    past, parts = init_past(k, v), []
    for position in range(0, 40, 5):
        part = slice(position, position + 5)
        y, past = causal_linear_attention_step(
            *(x[:, :, part] for x in (q, k, v)),
            past=past,
            frames_seen=torch.full((2,), position),
            blindspot=blindspot,
        )
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_30_000_frames(dtype):
    q, k = torch.randn(2, 1, 1, 30_000, 4)
    v = torch.randn(4).expand(1, 1, 30_000, 4) * 3  # the same everywhere: sums grow
    for path in (linear_attention, causal_linear_attention):
        with torch.autocast("cpu", dtype=dtype):
            got = path(q.to(dtype), k.to(dtype), v.to(dtype))
        assert got.dtype == dtype
        expected = path(q, k, v)
        assert (got - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("blindspot", [1, 16])
def test_memory_is_linear_in_time(blindspot):
    def saved(frames):
        sizes = []
        q = torch.randn(1, 1, frames, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            causal_linear_attention(q, q, q, blindspot=blindspot)
        return max(sizes)

    assert saved(4096) == 2 * saved(2048)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blindspot": 0}, "blindspot must be >= 1"),
        ({"q": torch.zeros(2, 3, 5, 4)}, "one length"),
        ({"k": torch.zeros(2, 2, 6, 4)}, "do not fit"),
        ({"v": torch.zeros(2, 3, 5, 4)}, "do not fit"),
    ],
)
def test_refusals(change, message):
    q, k, v = inputs(6)
    with pytest.raises(ValueError, match=message):
        causal_linear_attention(**{"q": q, "k": k, "v": v, **change})
