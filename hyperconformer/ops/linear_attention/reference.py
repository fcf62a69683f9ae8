"""Linear attention as it is written, with every pair of frames: O(T^2), any dtype."""

import torch

from hyperconformer.core.masks import chunk_mask


def linear_attention(q, k, v, *, key_padding_mask=None, chunk=None):
    """See :func:`hyperconformer.ops.linear_attention.linear_attention`."""
    if chunk is None:
        hidden = k.new_zeros(1, q.shape[2], k.shape[2], dtype=torch.bool)
    else:
        hidden = chunk_mask(k.shape[2], chunk, k.device)[None]
    if key_padding_mask is not None:
        hidden = hidden | key_padding_mask[:, None, :]
        k, v = _clear(key_padding_mask, k, v)
    weights = q.softmax(-1) * q.shape[-1] ** -0.5
    hidden = hidden[:, None, :, :, None]
    lowest = torch.finfo(k.dtype).min
    key_weights = k.unsqueeze(2).masked_fill(hidden, lowest).softmax(3)
    key_weights = key_weights.masked_fill(hidden, 0.0)  # (B, H, M, N, d)
    pairs = (weights.unsqueeze(3) * key_weights).sum(-1)
    return pairs @ v


def causal_linear_attention(q, k, v, *, blindspot=1, floor=1e-3, key_padding_mask=None):
    """See :func:`hyperconformer.ops.linear_attention.causal_linear_attention`."""
    index = torch.arange(k.shape[2], device=k.device)
    end = index + 1 if blindspot == 1 else index // blindspot * blindspot
    hidden = (index[None, :] >= end[:, None])[None]
    if key_padding_mask is not None:
        hidden = hidden | key_padding_mask[:, None, :]
        k, v = _clear(key_padding_mask, k, v)
    weights = q.softmax(-1) * q.shape[-1] ** -0.5
    pairs = (weights @ k.exp().transpose(-1, -2)).masked_fill(hidden[:, None], 0.0)
    return pairs @ v / pairs.sum(-1, keepdim=True).clamp(min=floor)


def _clear(padding_mask, *tensors):
    return (x.masked_fill(padding_mask[:, None, :, None], 0.0) for x in tensors)
