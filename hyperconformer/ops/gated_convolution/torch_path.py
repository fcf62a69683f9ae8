"""The gated convolution in torch's operations."""

import torch.nn.functional as F

from hyperconformer.ops.convolution import conv_nd


def gated_convolution(x, weight, bias, left, padding_mask):
    """See :func:`hyperconformer.ops.gated_convolution.gated_convolution`."""
    u = F.glu(x, dim=-1)
    if padding_mask is not None:
        u = u.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    right = weight.shape[-1] - 1 - left
    if left != right:
        u, left = F.pad(u, (0, 0, left, right)), 0
    return depthwise(u.unsqueeze(1), weight, bias, padding=left).squeeze(1)


def depthwise(u, weight, bias, padding=0):
    """Convolve (B, N, T, D), N stretches apart, over time; zeros pad both ends.

    A two-dimensional convolution over channels-last memory: it reads the frames as
    they lie, where a one-dimensional one would first transpose and copy them.
    """
    y = conv_nd(
        u.permute(0, 3, 1, 2),
        weight.unsqueeze(2),
        bias,
        stride=(1, 1),
        padding=(0, padding),
        dilation=(1, 1),
        groups=len(weight),
    )
    return y.permute(0, 2, 3, 1)
