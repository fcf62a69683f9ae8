"""Local attention as a dense masked softmax: readable, O(T^2), any dtype."""

import torch

from hyperconformer.core.masks import chunk_mask


def local_attention(
    q, k, v, *, window, causal, exact=False, chunk=None, padding_mask=None, scale=None
):
    """See :func:`hyperconformer.ops.local_attention.local_attention`."""
    index = torch.arange(k.shape[2], device=k.device)
    i, j = index[:, None], index[None, :]
    if exact:
        hidden = (i - j).abs() > window
    else:
        hidden = (i // window - j // window).abs() > 1
    if causal:
        hidden = hidden | (j > i)
    if chunk is not None:
        hidden = hidden | chunk_mask(k.shape[2], chunk, k.device)
    hidden = hidden[None, None]
    if padding_mask is not None:
        k, v = (x.masked_fill(padding_mask[:, None, :, None], 0.0) for x in (k, v))
        hidden = hidden | padding_mask[:, None, None, :]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q @ k.transpose(-1, -2)
    # -inf would make a NaN of a frame that sees nothing.
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(hidden, 0.0) @ v
