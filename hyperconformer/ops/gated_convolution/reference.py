"""The gated convolution as its formula reads: frame by frame, tap by tap."""

import torch


def gated_convolution(x, weight, bias, left, padding_mask):
    """See :func:`hyperconformer.ops.gated_convolution.gated_convolution`."""
    values, gates = x.chunk(2, dim=-1)
    u = values * gates.sigmoid()
    if padding_mask is not None:
        u = torch.where(padding_mask.unsqueeze(-1), 0.0, u)
    length, taps = x.shape[1], weight.shape[-1]
    outputs = []
    for t in range(length):
        seen = range(max(0, left - t), min(taps, length - t + left))
        y = sum(weight[:, 0, k] * u[:, t - left + k] for k in seen)
        outputs.append(y if bias is None else y + bias)
    return torch.stack(outputs, dim=1)
