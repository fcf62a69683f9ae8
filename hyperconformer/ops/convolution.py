"""Convolution that ``torch.compile`` leaves whole.

TorchInductor lowers the backward pass of a convolution with fixed strides, and so
compiles everything anew for every new length. As an operator of its own, which the
compiler does not look into, one compilation serves all lengths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperconformer.core.recording import is_exported


def conv_nd(x, weight, bias=None, *, stride, padding, dilation, groups=1):
    """Convolve over one or two dimensions.

    Arguments
    ---------
    x : torch.Tensor
        (B, C, T) or (B, C, T, F).
    weight : torch.Tensor
        (C', C / groups, taps) or (C', C / groups, taps, taps).
    bias : torch.Tensor, optional
        (C',).
    stride, padding, dilation : sequence of int
        One for each dimension.
    groups : int
        As ``torch.nn.functional.conv2d``.

    Returns
    -------
    torch.Tensor
        (B, C', T') or (B, C', T', F').

    Example
    -------
    >>> options = {"stride": [1], "padding": [1], "dilation": [1]}
    >>> conv_nd(torch.rand(2, 4, 9), torch.rand(6, 4, 3), **options).shape
    torch.Size([2, 6, 9])
    """
    lists = list(stride), list(padding), list(dilation)
    if not torch.compiler.is_compiling() or is_exported():
        return _pytorch(x, weight, *lists, groups, bias)
    device = x.device.type
    # Autocast does not know this operator.
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    y = _convolution(x, weight, *lists, groups)
    if bias is None:
        return y
    return y + bias.view(-1, *[1] * (x.dim() - 2))


def _pytorch(x, weight, stride, padding, dilation, groups, bias=None):
    function = F.conv1d if x.dim() == 3 else F.conv2d
    return function(x, weight, bias, stride, padding, dilation, groups)


@torch.library.custom_op("hyperconformer::convolution", mutates_args=())
def _convolution(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return _pytorch(x, weight, stride, padding, dilation, groups)


@torch.library.custom_op("hyperconformer::convolution_backward", mutates_args=())
def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        [True, True, False],
    )
    return _laid_out_as(x, grad_x), _laid_out_as(weight, grad_weight)


def _laid_out_as(tensor, gradient):
    """The layout that the compiler was told of before anything ran."""
    like = torch.empty_like(tensor)
    return gradient if gradient.stride() == like.stride() else like.copy_(gradient)


_convolution.register_fake(_pytorch)


@_convolution_backward.register_fake
def _(grad, x, weight, stride, padding, dilation, groups):
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx, inputs, output):
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx, grad):
    gradients = _convolution_backward(grad, *ctx.saved_tensors, *ctx.options)
    return (*gradients, *[None] * len(ctx.options))


_convolution.register_autograd(_backward, setup_context=_keep)
