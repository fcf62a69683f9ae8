"""Convolution of feature maps, its gradient of the weights faster on a CPU."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hyperconformer.cpu import block_size, is_eager_cpu


def convolve_maps(x, weight, bias=None, stride=(1, 1), dilation=(1, 1), groups=1):
    """Convolve feature maps whose channels stand last, without padding.

    PyTorch's gradient of the weights of a strided convolution takes several times
    as long on a CPU as the matrix product that it is. Here it is that product, a
    block of frames at a time.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, F, C).
    weight : torch.Tensor
        (C', C / groups, kernel over T, kernel over F).
    bias : torch.Tensor, optional
        (C',).
    stride : tuple of int
        Over T and F.
    dilation : tuple of int
        Over T and F.
    groups : int
        Groups of channels.

    Returns
    -------
    torch.Tensor
        (B, T', F', C').

    Example
    -------
    >>> maps, weight = torch.rand(2, 9, 9, 3), torch.rand(5, 3, 3, 3)
    >>> convolve_maps(maps, weight, stride=(2, 2)).shape
    torch.Size([2, 4, 4, 5])
    """
    x = x.permute(0, 3, 1, 2)
    if is_eager_cpu(x) and groups == 1 and tuple(dilation) == (1, 1):
        y = _Convolve.apply(x, weight, bias, tuple(stride))
    else:
        y = F.conv2d(x, weight, bias, stride, dilation=dilation, groups=groups)
    return y.permute(0, 2, 3, 1)


class _Convolve(torch.autograd.Function):
    """``conv2d`` of (B, C, T, F) in channels-last memory."""

    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        return F.conv2d(x, weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.nn.grad.conv2d_input(x.shape, weight, grad, ctx.stride)
        grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
        return grad_x, _weight_gradient(x, weight, grad, ctx.stride), grad_bias, None


def _weight_gradient(x, weight, grad, stride):
    """Sum over positions of the window that was read, times the gradient there."""
    channels, *window = weight.permute(0, 2, 3, 1).shape
    (over_t, over_f), grad = window[:2], grad.permute(0, 2, 3, 1)
    windows = x.permute(0, 2, 3, 1).unfold(1, over_t, stride[0])
    windows = windows.unfold(2, over_f, stride[1]).permute(0, 1, 2, 4, 5, 3)
    size = weight[0].numel()
    total = weight.new_zeros(size, channels)
    frames = max(1, block_size() // windows[:, 0].numel())
    for part, g in zip(windows.split(frames, 1), grad.split(frames, 1)):
        total.addmm_(part.reshape(-1, size).t(), g.reshape(-1, channels))
    return total.view(*window, channels).permute(3, 2, 0, 1)
