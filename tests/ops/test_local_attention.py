"""Local attention: both window rules against the dense softmax, edges, steps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.core.masks import ChunkRule
from hyperconformer.ops.local_attention import (
    init_past,
    local_attention,
    local_attention_step,
    reference,
    rotate_half,
)

RULES = [None, ChunkRule(4), ChunkRule(3, left_chunks=1)]


def inputs(frames, kv_heads=3, dtype=torch.float64):
    q = torch.randn(2, 3, frames, 4, dtype=dtype)
    k = torch.randn(2, kv_heads, frames, 4, dtype=dtype)
    v = torch.randn(2, kv_heads, frames, 5, dtype=dtype)
    return q, k, v


@pytest.mark.parametrize("chunk", RULES, ids=str)
@pytest.mark.parametrize("exact", [False, True], ids=["windows", "exact"])
@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_equals_the_dense_softmax(frames, causal, exact, chunk):
    for window in (1, 3, 4, 20):
        for kv_heads in (1, 3):
            for mask in (None, torch.rand(2, frames) < 0.3):
                q, k, v = inputs(frames, kv_heads)
                options = {
                    "window": window,
                    "causal": causal,
                    "exact": exact,
                    "chunk": chunk,
                    "padding_mask": mask,
                }
                got = local_attention(q, k, v, **options)
                expected = reference.local_attention(q, k, v, **options)
                torch.testing.assert_close(got, expected)


def seen(q_frame, frames, **options):
    """The keys that the query at ``q_frame`` sees, from unit values."""
    zeros = torch.zeros(1, 1, frames, 2)
    y = local_attention(zeros, zeros, torch.eye(frames)[None, None], **options)
    return y[0, 0, q_frame].nonzero().flatten().tolist()


def test_published_windows():
    assert seen(15, 40, window=8, causal=False) == list(range(24))
    assert seen(16, 40, window=8, causal=False) == list(range(8, 32))
    assert seen(15, 40, window=8, causal=True) == list(range(16))
    assert seen(16, 40, window=8, causal=True) == list(range(8, 17))


def test_exact_window():
    assert seen(16, 40, window=3, causal=False, exact=True) == list(range(13, 20))
    assert seen(16, 40, window=3, causal=True, exact=True) == list(range(13, 17))


@pytest.mark.parametrize("exact", [False, True])
def test_a_frame_that_sees_nothing_gives_zero(exact):
    q, k, v = (x.requires_grad_() for x in inputs(12))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[0] = True
    y = local_attention(q, k, v, window=3, causal=False, exact=exact, padding_mask=mask)
    assert y[0].abs().max() == 0
    y.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_hidden_keys_may_hold_nan():
    q, k, v = inputs(10)
    mask = torch.zeros(2, 10, dtype=torch.bool)
    mask[:, 7:] = True
    clean = local_attention(q, k, v, window=3, causal=False, padding_mask=mask)
    k[:, :, 7:], v[:, :, 7:] = float("nan"), float("nan")
    k.requires_grad_(), v.requires_grad_()
    y = local_attention(q, k, v, window=3, causal=False, padding_mask=mask)
    torch.testing.assert_close(y, clean)
    y.sum().backward()
    assert k.grad.isfinite().all() and v.grad.isfinite().all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck(causal, exact):
    q, k, v = (x.requires_grad_() for x in inputs(5))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    assert torch.autograd.gradcheck(
        lambda q, k, v: local_attention(
            q, k, v, window=2, causal=causal, exact=exact, padding_mask=mask
        ),
        (q, k, v),
    )


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    window=st.integers(1, 7),
    exact=st.booleans(),
)
def test_steps_equal_the_whole(steps, window, exact):
    q, k, v = inputs(sum(steps), kv_heads=1)
    whole = local_attention(q, k, v, window=window, causal=True, exact=exact)
    past, position, parts = init_past(k, v, window=window, exact=exact), 0, []
    for size in steps:
        part = slice(position, position + size)
        y, past = local_attention_step(
            *(x[:, :, part] for x in (q, k, v)),
            past=past,
            frames_seen=torch.full((2,), position),
            window=window,
            exact=exact,
        )
        parts.append(y)
        position += size
    torch.testing.assert_close(torch.cat(parts, dim=2), whole)


def test_memory_is_linear_in_time():
    def largest(frames):
        sizes = []
        q = torch.randn(1, 1, frames, 4, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            local_attention(q, q, q, window=8, causal=True)
        return max(sizes)

    assert largest(800) == 2 * largest(400)


def test_rotary_depends_on_the_distance_alone():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)

    def score(i, j):
        return rotate_half(q, torch.tensor([i])) @ rotate_half(k, torch.tensor([j])).T

    torch.testing.assert_close(score(5, 3), score(30_005, 30_003))
    assert (score(5, 3) - score(5, 4)).abs() > 1e-3
    torch.testing.assert_close(rotate_half(q, torch.tensor([9])).norm(), q.norm())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"window": 0}, "window must be >= 1"),
        ({"q": torch.zeros(2, 3, 5, 4)}, "one length"),
        ({"k": torch.zeros(2, 2, 6, 4)}, "do not fit"),
        ({"v": torch.zeros(2, 3, 5, 4)}, "one length"),
    ],
)
def test_refusals(change, message):
    q, k, v = inputs(6)
    options = {"q": q, "k": k, "v": v, "window": 2, "causal": False, **change}
    with pytest.raises(ValueError, match=message):
        local_attention(**options)


def test_rotary_refuses_an_odd_width():
    with pytest.raises(ValueError, match="even head width"):
        rotate_half(torch.zeros(2, 3), torch.arange(2))
