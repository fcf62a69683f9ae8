"""A gated linear unit and a depthwise convolution over time, as a Conformer has them.

Conformer, arXiv:2005.08100, section 2.2; the gate: arXiv:1612.08083, equation 1. One
operator, as on a CPU its parts cost more in memory than in arithmetic.
"""

import torch.nn.functional as F

from hyperconformer.ops.backend import takes_kernels
from hyperconformer.ops.convolution import conv_nd
from hyperconformer.ops.gated_convolution import cpp_path


def gated_convolution(x, weight, bias=None, *, left, padding_mask=None):
    """Gate frames, clear padding and convolve each channel over time.

    With values v and gates g side by side in ``x``::

        u_t = v_t sigmoid(g_t), 0 in padding and outside
        y_t = bias + sum over k of weight_k u_{t - left + k}

    Arguments
    ---------
    x : torch.Tensor
        (B, T, 2 D) frames.
    weight : torch.Tensor
        (D, 1, K) taps of the kernel.
    bias : torch.Tensor, optional
        (D,).
    left : int
        Frames before its own that a frame sees, at most K - 1; K - 1 - left follow it.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding; what stands there, even NaN, reaches no output.

    Returns
    -------
    torch.Tensor
        (B, T, D). Outputs in padding see the real frames near them.

    Example
    -------
    >>> import torch
    >>> y = gated_convolution(torch.rand(2, 9, 8), torch.rand(4, 1, 3), left=1)
    >>> y.shape
    torch.Size([2, 9, 4])
    """
    arguments = x, weight, bias, left, padding_mask
    if takes_kernels(lambda: cpp_path.unsupported_reason(*arguments)):
        return cpp_path.gated_convolution(*arguments)
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
