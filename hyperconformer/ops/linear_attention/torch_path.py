"""Linear attention in matrix products: memory linear in T, every exponent at most 0.

A group of keys is kept as its largest key per channel, m (d), and the sums
S = sum_j exp(k_j - m) [v_j, 1]' (d, e + 1), whose last column is the denominator.
Two groups merge exactly: the smaller maximum's sums shrink by the difference.
"""

import math

import torch
import torch.nn.functional as F

from hyperconformer.core.running_maximum import running_maximum

_EMPTY = -1e30
"""The largest key of a group without keys: finite, so that differences are too."""

_CHUNK_FRAMES = 64
"""Frames whose keys are summed before the running sums see them."""


def linear_attention(q, k, v, *, key_padding_mask=None, chunk=None):
    """See :func:`hyperconformer.ops.linear_attention.linear_attention`."""
    with torch.autocast(q.device.type, enabled=False):
        weights = _wide(q).softmax(-1) * q.shape[-1] ** -0.5
        k, values = _prepare(k, v, key_padding_mask)
        if chunk is None:
            out = weights @ _normalise(summarise(k, values)[1])
        else:
            frames = q.shape[2]
            weights, k, values = _in_blocks(chunk.chunk_frames, weights, k, values)
            count = weights.shape[2]
            if chunk.left_chunks is not None:
                count = min(count, chunk.left_chunks + 1)
            _, sums = _trailing(summarise(k, values), count)
            out = (weights @ _normalise(sums)).flatten(2, 3)[:, :, :frames]
        return out.to(v.dtype)


def causal_linear_attention(q, k, v, *, blindspot=1, floor=1e-3, key_padding_mask=None):
    """See :func:`hyperconformer.ops.linear_attention.causal_linear_attention`."""
    with torch.autocast(q.device.type, enabled=False):
        log_q = _log_weights(q)
        keys, values = _prepare(k, v, key_padding_mask)
        past = empty_group(keys, values)
        out = _causal(log_q, keys, values, past, past, blindspot, floor)
        return out.to(v.dtype)


def causal_linear_attention_step(
    q, k, v, *, past, frames_seen, blindspot=1, floor=1e-3, padding_mask=None
):
    """See :func:`hyperconformer.ops.linear_attention.causal_linear_attention_step`."""
    frames = q.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        visible, pending = past[:2], past[2:]
        log_q = _log_weights(q)
        keys, values = _prepare(k, v, padding_mask)
        # Every stream's frames move to where they stand in its current bucket.
        offset = (frames_seen % blindspot)[:, None]
        index = torch.arange(frames, device=q.device)
        slots = torch.arange(frames + blindspot - 1, device=q.device) - offset
        outside = (slots < 0) | (slots >= frames)
        slots = slots.clamp(0, frames - 1)
        log_q, keys, values = (_take(x, slots) for x in (log_q, keys, values))
        keys = keys.masked_fill(outside[:, None, :, None], _EMPTY)
        values = values.masked_fill(outside[:, None, :, None], 0.0)
        out = _causal(log_q, keys, values, visible, pending, blindspot, floor)
        out = _take(out, offset + index)

        real = frames if padding_mask is None else frames - padding_mask.sum(-1)
        closed = (offset[:, 0] + real) // blindspot * blindspot
        is_open = torch.arange(keys.shape[2], device=q.device) >= closed[:, None]
        is_open = is_open[:, None, :, None]
        within = (closed > 0)[:, None, None]
        visible = merge(visible, _where(within, pending, empty_group(keys, values)))
        visible = merge(visible, summarise(*_hide(keys, values, is_open)))
        pending = _where(within, empty_group(keys, values), pending)
        pending = merge(pending, summarise(*_hide(keys, values, ~is_open)))
        return out.to(v.dtype), (*visible, *pending)


def summarise(k, values):
    """The group of all keys (..., N, d) with values (..., N, e + 1)."""
    largest = k.detach().amax(-2)
    return largest, (k - largest.unsqueeze(-2)).exp().transpose(-1, -2) @ values


def merge(a, b):
    """The group of the keys of two groups."""
    largest = torch.maximum(a[0], b[0])
    sums = (
        group_sums * (group_max - largest).exp().unsqueeze(-1)
        for group_max, group_sums in (a, b)
    )
    return largest, sum(sums)


def empty_group(k, values):
    """A group without keys, of the width of k (B, Hk, T, d) and values."""
    sums = values.new_zeros(*k.shape[:2], k.shape[-1], values.shape[-1])
    return torch.full_like(sums[..., 0], _EMPTY), sums


def _causal(log_q, k, values, past, pending, bucket, floor):
    """Causal attention to ``past``, from the second bucket on to ``pending``, and to k.

    A query's own bucket is hidden, except that a bucket of one frame is seen.
    Keys before a query are cut into stretches that end before it, by halving: the
    second half of every stretch of two, four, eight... buckets sees the whole first
    half. So no future key, however large, enters a maximum that scales the past.
    """
    frames = log_q.shape[2]
    halvings = max(0, math.ceil(math.log2(_CHUNK_FRAMES / bucket)))
    chunk = bucket * 2 ** min(halvings, (-(-frames // bucket) - 1).bit_length())
    log_q, k, values = _in_blocks(chunk, log_q, k, values)

    groups = summarise(k, values)
    before = _delay(_trailing(groups, groups[0].shape[2]), 1)
    before = merge(before, tuple(x.unsqueeze(2) for x in past))
    largest = _largest_visible(k, bucket, past[0])
    waiting = pending[0][:, :, None, None]
    started = torch.arange(k.shape[2] * chunk, device=k.device).view(-1, chunk, 1)
    started = started >= bucket
    largest = torch.where(started, torch.maximum(largest, waiting), largest)
    # Any shift is exact; this one leaves every term and the floor between 0 and 1.
    shift = (log_q.detach() + largest).amax(-1, keepdim=True)
    log_q = log_q - shift.clamp(min=math.log(floor))

    out = (log_q + before[0].unsqueeze(3)).exp() @ before[1]
    weights = (log_q + waiting).exp().masked_fill(~started, 0.0)
    out = out + weights @ pending[1].unsqueeze(2)
    if bucket == 1:
        out = out + (log_q + k).exp().sum(-1, keepdim=True) * values
    size = bucket
    while size < chunk:
        out = out + _second_halves(log_q, k, values, size)
        size *= 2
    numerator, denominator = out[..., :-1], out[..., -1:]
    lowest = floor * (-shift.clamp(min=math.log(floor))).exp()
    return (numerator / torch.maximum(denominator, lowest)).flatten(2, 3)[:, :, :frames]


def _second_halves(log_q, k, values, size):
    """In every stretch of 2 size frames, the second half attends to the first."""
    pairs = (log_q.shape[3] // (2 * size), 2, size)
    log_q = log_q.unflatten(3, pairs)[..., 1, :, :]
    k = k.unflatten(3, pairs)[..., 0, :, :]
    values = values.unflatten(3, pairs)[..., 0, :, :]
    largest = k.detach().amax(-2, keepdim=True)
    weights, k = (log_q + largest).exp(), (k - largest).exp()
    if size < k.shape[-1]:
        late = (weights @ k.transpose(-1, -2)) @ values
    else:
        late = weights @ (k.transpose(-1, -2) @ values)
    return F.pad(late, (0, 0, size, 0)).flatten(3, 4)


def _largest_visible(k, bucket, past_max):
    """Per query and channel the largest key in past and k that it sees."""
    k = k.detach()
    shape = k.shape
    k = k.flatten(2, 3)
    if bucket > 1:
        k = k.unflatten(2, (-1, bucket)).amax(3)
        k = F.pad(k, (0, 0, 1, 0), value=_EMPTY)[:, :, :-1]
    largest = torch.maximum(running_maximum(k, 2), past_max.unsqueeze(2))
    return largest.repeat_interleave(bucket, dim=2).view(shape)


def _trailing(groups, count):
    """Each group (B, Hk, U, ...) merged with the count - 1 groups before it."""
    length = groups[0].shape[2]
    if count >= length:
        count = 1 << (length - 1).bit_length()
    total, covered, size = None, 0, 1
    while True:
        if count & size:
            total = groups if total is None else merge(total, _delay(groups, covered))
            covered += size
        if 2 * size > count:
            return total
        groups = merge(groups, _delay(groups, size))
        size *= 2


def _delay(groups, steps):
    """Groups (B, Hk, U, ...) moved ``steps`` later, empty ones first."""
    largest, sums = groups
    length = largest.shape[2]
    return (
        F.pad(largest, (0, 0, steps, 0), value=_EMPTY)[:, :, :length],
        F.pad(sums, (0, 0, 0, 0, steps, 0))[:, :, :length],
    )


def _prepare(k, v, key_padding_mask):
    """Keys, and values with a last column of ones, hidden ones without effect."""
    k, v = _wide(k), _wide(v)
    values = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    if key_padding_mask is None:
        return k, values
    return _hide(k, values, key_padding_mask[:, None, :, None])


def _hide(k, values, hidden):
    return k.masked_fill(hidden, _EMPTY), values.masked_fill(hidden, 0.0)


def _in_blocks(size, q, k, values):
    """Cut time into blocks of ``size`` frames: (B, H, U, size, ...)."""
    tail = -q.shape[2] % size
    q, values = (F.pad(x, (0, 0, 0, tail)) for x in (q, values))
    k = F.pad(k, (0, 0, 0, tail), value=_EMPTY)
    return tuple(x.unflatten(2, (-1, size)) for x in (q, k, values))


def _normalise(sums):
    """Weighted means of the values; 0 where there is no key."""
    numerator, denominator = sums[..., :-1], sums[..., -1:]
    return numerator / denominator.masked_fill(denominator == 0, 1.0)


def _log_weights(q):
    return _wide(q).log_softmax(-1) - 0.5 * math.log(q.shape[-1])


def _wide(x):
    """At least float32: sums over tokens leave the range of half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _take(x, index):
    """Frames ``index`` (B, n) of x (B, H, T, d)."""
    index = index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def _where(condition, a, b):
    """Group a where the condition (B, 1, 1) holds, else b."""
    return (
        torch.where(condition, a[0], b[0]),
        torch.where(condition.unsqueeze(-1), a[1], b[1]),
    )
