"""Dropout on a CPU, in ``cpp_kernels.cpp``."""

import functools
import pathlib
from ctypes import c_float, c_int32, c_int64, c_uint64, c_void_p

import torch

from hyperconformer.ops import cpp

SOURCE = pathlib.Path(__file__).with_name("cpp_kernels.cpp")

# In the order of the enumeration in the C++ file.
ACTIVATIONS = (None, "silu", "gelu")


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
    activation : str or None
        One of ``ACTIVATIONS``.

    Returns
    -------
    torch.Tensor
    """
    place = ACTIVATIONS.index(activation)
    return _Dropout.apply(x, seed, zeroed, scale, place)


class _Dropout(torch.autograd.Function):
    """Keeps the input of an activation, else nothing; draws again in backward."""

    @staticmethod
    def forward(ctx, x, *draws):
        x = x.contiguous()
        *_, activation = ctx.draws = draws
        ctx.save_for_backward(*[x][: activation > 0])
        return forward(x, *draws)

    @staticmethod
    @cpp.once
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors or (grad,)
        return backward(x, grad, *ctx.draws), None, None, None, None


def forward(x, seed, zeroed, scale, activation):
    """:func:`dropout` of contiguous memory; the activation is its place."""
    y = torch.empty_like(x)
    draws = seed, zeroed, scale, torch.get_num_threads()
    addresses = map(cpp.address, (x, y))
    _library().dropout_forward(activation, x.numel(), *draws, *addresses)
    return y


def backward(x, grad, seed, zeroed, scale, activation):
    """The gradient of ``x``, which may be anything where there is no activation."""
    grad = grad.contiguous()
    grad_x = torch.empty_like(grad)
    draws = seed, zeroed, scale, torch.get_num_threads()
    addresses = map(cpp.address, (x, grad, grad_x))
    _library().dropout_backward(activation, grad.numel(), *draws, *addresses)
    return grad_x


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
