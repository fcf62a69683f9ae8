"""Local attention in blocks of queries, each on a few blocks of keys: O(T window)."""

import torch
import torch.nn.functional as F


def local_attention(
    q, k, v, *, window, causal, exact=False, chunk=None, padding_mask=None, scale=None
):
    """See :func:`hyperconformer.ops.local_attention.local_attention`."""
    frames = k.shape[2]
    # One window covers a short input whole, whichever rule applies.
    window = min(window, frames)
    tail = -frames % window
    right = tail if causal else tail + window

    def visible(i, j):
        return (j >= 0) & (j < frames) & _visible(i, j, window, causal, exact, chunk)

    if padding_mask is not None:
        k, v = (x.masked_fill(padding_mask[:, None, :, None], 0.0) for x in (k, v))
        padding_mask = F.pad(padding_mask, (window, right), value=True)
    out = _banded(
        F.pad(q, (0, 0, 0, tail)),
        F.pad(k, (0, 0, window, right)),
        F.pad(v, (0, 0, window, right)),
        block=window,
        left=window,
        visible=visible,
        hidden_keys=padding_mask,
        scale=scale,
    )
    return out[:, :, :frames]


def local_attention_step(
    q, k, v, *, past, frames_seen, window, exact=False, padding_mask=None, scale=None
):
    """See :func:`hyperconformer.ops.local_attention.local_attention_step`."""
    past_k, past_v, past_hidden = past
    frames, kept = k.shape[2], past_hidden.shape[1]
    if padding_mask is None:
        padding_mask = torch.zeros_like(past_hidden[:, :1]).expand(-1, frames)
    k, v = (x.masked_fill(padding_mask[:, None, :, None], 0.0) for x in (k, v))
    keys, values = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
    hidden = torch.cat([past_hidden, padding_mask], dim=1)
    block = min(window, frames)
    tail = -frames % block
    seen = frames_seen.view(-1, 1, 1, 1)

    def visible(i, j):
        # The rule of windows counts frames from the start of each stream.
        rule = _visible(seen + i, seen + j, window, True, exact, None)
        return (seen + j >= 0) & rule

    out = _banded(
        F.pad(q, (0, 0, 0, tail)),
        F.pad(keys, (0, 0, 0, tail)),
        F.pad(values, (0, 0, 0, tail)),
        block=block,
        left=kept,
        visible=visible,
        hidden_keys=F.pad(hidden, (0, tail), value=True),
        scale=scale,
    )
    # Padding is no time: what is kept ends with each stream's last real frame.
    real = frames - padding_mask.sum(-1, keepdim=True)
    kept_index = real + torch.arange(kept, device=q.device)
    past = (
        _take_frames(keys, kept_index),
        _take_frames(values, kept_index),
        hidden.gather(1, kept_index),
    )
    return out[:, :, :frames], past


def _visible(i, j, window, causal, exact, chunk):
    """Whether query frame i sees key frame j; index tensors that broadcast."""
    if exact:
        seen = ((i - j) <= window) & ((j - i) <= window)
    else:
        step = _floor_divide(j, window) - _floor_divide(i, window)
        seen = (step >= -1) & (step <= 1)
    if causal:
        seen = seen & (j <= i)
    if chunk is not None:
        back = _floor_divide(i, chunk.chunk_frames) - _floor_divide(
            j, chunk.chunk_frames
        )
        seen = seen & (back >= 0)
        if chunk.left_chunks is not None:
            seen = seen & (back <= chunk.left_chunks)
    return seen


def _take_frames(x, index):
    index = index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, index)


def _floor_divide(index, size):
    return torch.div(index, size, rounding_mode="floor")


def _banded(q, k, v, *, block, left, visible, hidden_keys, scale):
    """Attention of each block of queries to the stretch of keys around it.

    q is (B, H, U * block, d). Keys and values start ``left`` frames before the first
    query and end with the last block's stretch; the stretches of neighbouring
    blocks overlap.
    """
    blocks = q.shape[2] // block
    span = k.shape[2] - (blocks - 1) * block
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = (q * scale).unflatten(2, (blocks, block))
    scores = q @ k.unfold(2, span, block)  # (B, H, U, block, span)
    start = torch.arange(blocks, device=q.device)[:, None, None] * block
    i = start + torch.arange(block, device=q.device)[:, None]
    j = start + torch.arange(span, device=q.device) - left
    hidden = ~visible(i, j)
    hidden = hidden.view(-1, 1, *hidden.shape[-3:])
    if hidden_keys is not None:
        hidden = hidden | hidden_keys.unfold(1, span, block)[:, None, :, None]
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    out = weights.to(v.dtype) @ v.unfold(2, span, block).transpose(-1, -2)
    return out.flatten(2, 3)
