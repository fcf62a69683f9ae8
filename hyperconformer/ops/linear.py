"""Linear layers on a CPU, by oneDNN where MKL does not use what the processor has.

PyTorch multiplies matrices of float32 by MKL, which gives processors that are not
Intel's its AVX2 products, also where there is AVX-512. oneDNN, part of PyTorch and
behind its convolutions, asks only what a processor can do: on one with AVX-512 its
products take half of the time, on one without 0.85 to 1 of it.
"""

import functools
import pathlib

import torch
import torch.nn.functional as F

from hyperconformer.ops import cpp
from hyperconformer.ops.backend import takes_kernels

# Multiplications from which on oneDNN, which takes longer to call, is faster.
LEAST_WORK = 1 << 22


def linear(x, weight, bias=None):
    """A linear map of the last dimension, ``x weight^T + bias``.

    ``torch.nn.functional.linear``, derivatives of any order included, in less time on
    CPUs of AMD.

    Arguments
    ---------
    x : torch.Tensor
        (..., K).
    weight : torch.Tensor
        (N, K).
    bias : torch.Tensor, optional
        (N,).

    Returns
    -------
    torch.Tensor
        (..., N).

    Example
    -------
    >>> linear(torch.rand(2, 9, 4), torch.rand(6, 4)).shape
    torch.Size([2, 9, 6])
    """
    if not takes_kernels(lambda: why_not(x, weight, bias)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def why_not(x, weight, bias=None):
    """Why oneDNN does not multiply these: a str, or None if it does."""
    # Before anything looks at sizes, on which compiled code would then depend.
    if torch.compiler.is_compiling():
        return "does not run under torch.compile"
    work = x.numel() * len(weight)
    if work < LEAST_WORK:
        return f"is faster from {LEAST_WORK} multiplications on, got {work}"
    # Where shapes are wrong, torch says so.
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return f"needs fitting shapes, got {tuple(x.shape)} and {tuple(weight.shape)}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"needs fitting shapes, got a bias of shape {tuple(bias.shape)}"
    # Autocast would multiply in half precision.
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return "does not run under autocast or with oneDNN switched off"
    return cpp.why_not_these([x, weight, bias], (torch.float32,)) or why_not_here()


@functools.cache
def why_not_here():
    """Why oneDNN is not faster on this machine: a str, or None if it is."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return "needs a PyTorch with MKL, to be faster than that, and with oneDNN"
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "needs a PyTorch whose linear layers oneDNN can compute"
    try:
        processor = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return "needs to know the processor, which only Linux tells"
    if "GenuineIntel" in processor:
        return "is no faster than MKL on Intel's processors"
    return None


class _Linear(torch.autograd.Function):
    """Keeps its inputs, as PyTorch's own does."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad, weight.t()) if needs_x else None,
            _weight_gradient(rows, x.flatten(0, -2)) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _weight_gradient(grad, x):
    """(N, K) = grad^T x, of (M, N) and (M, K)."""
    # oneDNN wants the rows of its first operand whole: what is to be turned for that
    # costs less than its products gain only with AVX-512.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return grad.t() @ x
    if x.shape[1] <= grad.shape[1]:
        return linear(x.t(), grad.t()).t()
    return linear(grad.t(), x.t())


def _onednn(x, weight, bias):
    # Rows that overlap it refuses.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
