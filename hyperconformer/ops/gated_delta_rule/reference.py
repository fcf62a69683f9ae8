"""The gated delta rule as it is written, frame by frame, any dtype."""

import torch


def gated_delta_rule(q, k, v, log_decay, strength, *, memory=None):
    """See :func:`hyperconformer.ops.gated_delta_rule.gated_delta_rule`."""
    batch, heads, frames, width = q.shape
    if memory is None:
        memory = v.new_zeros(batch, heads, width, v.shape[-1])
    out = []
    for t in range(frames):
        key, decay = k[:, :, t, :, None], log_decay[:, :, t, None, None].exp()
        share = strength[:, :, t, None, None]
        erased = memory - share * key @ (key.mT @ memory)
        memory = decay * erased + share * key @ v[:, :, t, None, :]
        out.append(q[:, :, t, None, :] @ memory * width**-0.5)
    return torch.cat(out, dim=2), memory
