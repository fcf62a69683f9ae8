"""A gated linear unit and a depthwise convolution over time, as a Conformer has them.

Conformer, arXiv:2005.08100, section 2.2; the gate: arXiv:1612.08083, equation 1. One
operator, as on a CPU its parts cost more in memory than in arithmetic.

Three paths compute the same: ``reference``, the formula tap by tap; ``torch``, in
torch's operations; ``cpp``, kernels for a CPU.
"""

from hyperconformer.ops.backend import takes_kernels
from hyperconformer.ops.gated_convolution import cpp_path, torch_path
from hyperconformer.ops.gated_convolution.torch_path import depthwise

__all__ = ["depthwise", "gated_convolution"]


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
    return torch_path.gated_convolution(*arguments)
