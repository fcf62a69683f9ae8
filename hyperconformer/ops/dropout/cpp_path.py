"""Dropout on a CPU, in ``cpp_kernels.cpp``."""

import functools
import pathlib
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p

import torch

from hyperconformer.ops import cpp

SOURCE = pathlib.Path(__file__).with_name("cpp_kernels.cpp")


def unsupported_reason(x):
    """Why the kernels cannot take a tensor: a str, or None if they can."""
    return cpp.unsupported_tensors([x], (torch.float32,)) or cpp.unsupported_reason(
        SOURCE
    )


def dropout(x, seed, zeroed, scale, activation):
    """Drop ``zeroed`` of 65536 elements of an activation's result, scale the rest.

    Arguments
    ---------
    x : torch.Tensor
        float32 of any shape.
    seed : int
        Of the draws, in [0, 2^63).
    zeroed : int
        In [0, 65536); with 0 the seed does not matter.
    scale : float
        Factor on what stays.
    activation : int
        Its place in the enumeration of the C++ file.

    Returns
    -------
    torch.Tensor
    """
    return _Dropout.apply(x, seed, zeroed, scale, activation)


class _Dropout(torch.autograd.Function):
    """Keeps the input of an activation, else nothing; draws again in backward."""

    @staticmethod
    def forward(ctx, x, seed, zeroed, scale, activation):
        x = x.contiguous()
        y = torch.empty_like(x)
        ctx.draws = seed, zeroed, scale, torch.get_num_threads()
        ctx.activation = activation
        ctx.save_for_backward(*[x][: activation > 0])
        _library().dropout_forward(
            activation, x.numel(), *ctx.draws, x.data_ptr(), y.data_ptr()
        )
        return y

    @staticmethod
    @cpp.once
    def backward(ctx, grad):
        grad = grad.contiguous()
        (x,) = ctx.saved_tensors or (grad,)
        grad_x = torch.empty_like(grad)
        addresses = map(cpp.address, (x, grad, grad_x))
        _library().dropout_backward(
            ctx.activation, grad.numel(), *ctx.draws, *addresses
        )
        return grad_x, None, None, None, None


@functools.cache
def _library():
    common = [c_int64, c_int64, c_uint64, c_int32, c_float, c_int64]
    return cpp.declare(
        SOURCE,
        {
            "dropout_forward": [*common, *[c_void_p] * 2],
            "dropout_backward": [*common, *[c_void_p] * 3],
        },
    )
