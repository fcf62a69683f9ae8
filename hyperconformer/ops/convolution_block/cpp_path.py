"""The convolution block on a CPU, in ``cpp_kernels.cpp``."""

import ctypes
import functools
import pathlib

import torch

from hyperconformer.ops import cpp

SOURCE = pathlib.Path(__file__).with_name("cpp_kernels.cpp")


LONGEST = 9
"""Most frames of a kernel to a stride: stretches that run side by side lie apart."""


LARGEST = 2**17
"""Most weights: more leave the cache, and torch's products are better."""

LEAST_DEPTH = 64
"""Products in a sum from which on a convolution is kept and not done again."""


def unsupported_reason(x, lengths, weight, bias, gain, shift, geometry):
    """Why the kernels cannot take these arguments: a str, or None if they can."""
    tensors = x, weight, bias, gain, shift
    reason = cpp.unsupported_tensors(
        tensors, (torch.float32,)
    ) or cpp.unsupported_tensors([lengths], (torch.int64,))
    if reason:
        return reason
    # Neither could be kept for backward.
    if torch.is_grad_enabled() and (x.is_inference() or lengths.is_inference()):
        return "needs tensors made outside of torch.inference_mode"
    if weight.numel() > LARGEST:
        return f"is made for kernels of up to {LARGEST} numbers, got {weight.numel()}"
    taps, _, channels, out_channels = weight.shape
    affine = geometry.output_shape(x, weight)[2:]
    shapes = x.shape[3], gain.shape, shift.shape, bias is None or bias.shape
    expected = channels, affine, affine, bias is None or (out_channels,)
    if shapes != expected or lengths.shape != x.shape[:1]:
        return f"needs shapes {expected} and a length each, got {shapes}"
    if taps > LONGEST * geometry.stride[0]:
        return f"needs at most {LONGEST} frames to a stride, got {taps}"
    if geometry.reflects and taps != 2 * geometry.time_pad + 1:
        return f"reflects for an odd kernel only, got {taps} frames"
    if x.shape[2] <= geometry.bin_pad:
        return f"needs more than {geometry.bin_pad} bins, got {x.shape[2]}"
    shortest = geometry.time_pad + 1 if geometry.reflects else 0
    found = lengths.tolist()
    if min(found) < shortest or max(found) > x.shape[1]:
        return f"needs lengths from {shortest} to {x.shape[1]}, got {found}"
    return cpp.unsupported_reason(SOURCE)


def convolution_block(x, lengths, weight, bias, gain, shift, geometry):
    """See :func:`hyperconformer.ops.convolution_block.convolution_block`."""
    inputs = x, lengths, weight, bias, gain, shift
    needs_gradient = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in inputs
    )
    return _ConvolutionBlock.apply(*inputs, geometry, needs_gradient)


class _ConvolutionBlock(torch.autograd.Function):
    """Keeps its input and, if it is worth it, what is normalised."""

    @staticmethod
    def forward(ctx, *arguments):
        *inputs, geometry, needs_gradient = arguments
        inputs = [t if t is None else t.contiguous() for t in inputs]
        # Lengths are often changed in place afterwards.
        inputs[1] = inputs[1].clone()
        problem = _problem(*inputs, geometry)
        out = inputs[0].new_empty(geometry.output_shape(inputs[0], inputs[2]))
        kept = [None, None]
        if needs_gradient:
            kept[1] = out.new_empty(*out.shape[:2], 2)
            if inputs[2][..., 0].numel() >= LEAST_DEPTH:
                kept[0] = torch.empty_like(out)
        _library().convolution_block_forward(
            ctypes.byref(problem), *map(cpp.address, (*kept, out))
        )
        ctx.save_for_backward(*inputs, *kept)
        ctx.geometry = geometry
        return out

    @staticmethod
    @cpp.once
    def backward(ctx, grad_out):
        *inputs, convolved, statistics = ctx.saved_tensors
        problem = _problem(*inputs, ctx.geometry)
        x, _, *parameters = inputs
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        gradients = [p if p is None else torch.zeros_like(p) for p in parameters]
        # The name keeps a copy alive while its address is in use.
        grad_out = grad_out.contiguous()
        _library().convolution_block_backward(
            ctypes.byref(problem),
            *map(cpp.address, (convolved, statistics, grad_out, grad_x, *gradients)),
        )
        return grad_x, None, *gradients, None, None


class _Problem(ctypes.Structure):
    """``Problem`` of the C++ file, field by field."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "frames", "bins", "channels")),
        *((name, ctypes.c_int64) for name in ("out_frames", "out_bins")),
        *((name, ctypes.c_int64) for name in ("out_channels", "time_taps", "bin_taps")),
        *((name, ctypes.c_int64) for name in ("time_stride", "bin_stride")),
        *((name, ctypes.c_int64) for name in ("time_pad", "bin_pad", "reflects")),
        ("threads", ctypes.c_int64),
        *((name, ctypes.c_float) for name in ("eps", "slope")),
        *((name, ctypes.c_void_p) for name in ("x", "lengths", "weights", "biases")),
        *((name, ctypes.c_void_p) for name in ("gains", "shifts")),
    ]


def _problem(x, lengths, weight, bias, gain, shift, geometry):
    """A ``Problem`` of contiguous tensors; they must outlive it."""
    time_taps, bin_taps, _, out_channels = weight.shape
    return _Problem(
        *x.shape,
        *geometry.output_shape(x, weight)[1:3],
        out_channels,
        time_taps,
        bin_taps,
        *geometry.stride,
        geometry.time_pad,
        geometry.bin_pad,
        geometry.reflects,
        torch.get_num_threads(),
        geometry.eps,
        geometry.slope,
        *map(cpp.address, (x, lengths, weight, bias, gain, shift)),
    )


@functools.cache
def _library():
    pointer = ctypes.c_void_p
    return cpp.declare(
        SOURCE,
        {
            "convolution_block_forward": [pointer] * 4,
            "convolution_block_backward": [pointer] * 9,
        },
    )
