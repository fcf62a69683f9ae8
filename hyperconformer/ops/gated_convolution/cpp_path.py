"""The gated convolution on a CPU, in ``cpp_kernels.cpp``."""

import ctypes
import functools
import pathlib

import torch

from hyperconformer.ops import cpp

SOURCE = pathlib.Path(__file__).with_name("cpp_kernels.cpp")


def unsupported_reason(x, weight, bias, left, padding_mask):
    """Why the kernels cannot take these arguments: a str, or None if they can."""
    channels, taps = len(weight), weight.shape[-1]
    shapes = x.shape[2:], weight.shape, bias is None or bias.shape
    expected = (2 * channels,), (channels, 1, taps), bias is None or (channels,)
    if shapes != expected or not 0 <= left < taps:
        return f"needs shapes {expected} and 0 <= left < {taps}, got {shapes}, {left}"
    return (
        cpp.unsupported_tensors([x, weight, bias], (torch.float32,))
        or cpp.unsupported_mask(padding_mask, x)
        or cpp.unsupported_reason(SOURCE)
    )


def gated_convolution(x, weight, bias, left, padding_mask):
    """See :func:`hyperconformer.ops.gated_convolution.gated_convolution`."""
    return _GatedConvolution.apply(x, weight, bias, left, padding_mask)


class _GatedConvolution(torch.autograd.Function):
    """Keeps its inputs; makes the gated frames again in backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, left, padding_mask):
        inputs = [
            t if t is None else t.contiguous() for t in (x, weight, bias, padding_mask)
        ]
        y = x.new_empty(*x.shape[:2], len(weight))
        problem = _problem(*inputs, left)
        _library().gated_convolution_forward(ctypes.byref(problem), y.data_ptr())
        ctx.save_for_backward(*inputs)
        ctx.left = left
        return y

    @staticmethod
    @cpp.once
    def backward(ctx, grad_y):
        inputs = ctx.saved_tensors
        x, weight, bias, _ = inputs
        problem = _problem(*inputs, ctx.left)
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        # The name keeps a copy alive while its address is in use.
        grad_y = grad_y.contiguous()
        _library().gated_convolution_backward(
            ctypes.byref(problem),
            *map(cpp.address, (grad_y, grad_x, grad_weight, grad_bias)),
        )
        return grad_x, grad_weight, grad_bias, None, None


class _Problem(ctypes.Structure):
    """``Problem`` of the C++ file, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels")),
        *((name, ctypes.c_int64) for name in ("taps", "left", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "weights", "biases", "padding")),
    ]


def _problem(x, weight, bias, padding_mask, left):
    """A ``Problem`` of contiguous tensors; they must outlive it."""
    return _Problem(
        *x.shape[:2],
        len(weight),
        weight.shape[-1],
        left,
        torch.get_num_threads(),
        *map(cpp.address, (x, weight, bias, padding_mask)),
    )


@functools.cache
def _library():
    pointer = ctypes.c_void_p
    return cpp.declare(
        SOURCE,
        {
            "gated_convolution_forward": [pointer] * 2,
            "gated_convolution_backward": [pointer] * 5,
        },
    )
