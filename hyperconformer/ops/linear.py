"""Linear layers on a CPU, by oneDNN where MKL does not use what the processor has.

PyTorch multiplies matrices of float32 by MKL, which gives processors that are not
Intel's its AVX2 products, also where there is AVX-512. oneDNN, part of PyTorch and
behind its convolutions, asks only what a processor can do.

oneDNN writes machine code for each number of rows, in milliseconds, and keeps it: with
every batch of another length, that would cost more time than it saves, and gigabytes.
So rows are filled up with zeros to one of few numbers.
"""

import functools
import pathlib

import torch
import torch.nn.functional as F

from hyperconformer.ops import cpp
from hyperconformer.ops.backend import takes_kernels

# Multiplications from which on oneDNN, which takes longer to call, is faster.
LEAST_WORK = 1 << 22

# Numbers of rows between a power of two and the next: a sixteenth is the most that is
# added, a thirtieth what is on average.
ROWS_OF_AN_OCTAVE = 16


def linear(x, weight, bias=None):
    """A linear map of the last dimension, ``x weight^T + bias``.

    ``torch.nn.functional.linear``, derivatives of any order included, in less time on
    processors with AVX2 or AVX-512 that are not Intel's.

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
    if not takes_kernels(lambda: unsupported_reason(x, weight, bias)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _onednn(x, weight, bias)


def unsupported_reason(x, weight, bias=None):
    """Why oneDNN does not multiply these: a str, or None if it does."""
    # First of all: what looks at sizes would make compiled code depend on them.
    reason = cpp.unsupported_tensors([x, weight, bias], (torch.float32,))
    if reason:
        return reason
    # Where shapes are wrong, torch says so.
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return f"needs fitting shapes, got {tuple(x.shape)} and {tuple(weight.shape)}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"needs fitting shapes, got a bias of shape {tuple(bias.shape)}"
    work = x.numel() * weight.shape[0]
    if work < LEAST_WORK:
        return f"is faster from {LEAST_WORK} multiplications on, got {work}"
    # Autocast would multiply in half precision.
    if torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return "does not run under autocast or with oneDNN switched off"
    return unsupported_machine()


@functools.cache
def unsupported_machine():
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
    """Keeps what backward needs of its inputs."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        # Both products take them: they are filled up once.
        count, rows = len(rows), _filled(rows)
        if ctx.needs_input_grad[0]:
            grad_x = linear(rows, weight.t())[:count].view(*grad.shape[:-1], -1)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(rows, x.reshape(-1, x.shape[-1]))
        return grad_x, grad_weight, grad_bias


def _weight_gradient(grad, x):
    """(N, K) = grad^T x, of (>= M, N), filled up with zeros, and (M, K)."""
    # oneDNN wants the rows of its first operand whole: what is to be turned for that
    # costs less than its products gain only with AVX-512.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return grad[: len(x)].t() @ x
    if x.shape[1] <= grad.shape[1]:
        return linear(F.pad(x.t(), (0, len(grad) - len(x))), grad.t()).t()
    return linear(grad.t(), _filled(x).t())


def _onednn(x, weight, bias):
    # Rows that overlap it refuses, and of a bias it reads memory as it comes.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    rows = x.reshape(-1, x.shape[-1])
    return _product(_filled(rows), weight, bias)[: len(rows)].view(*x.shape[:-1], -1)


def _product(rows, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _filled(rows):
    """Rows (M, K), and zeros to the next of few numbers of rows."""
    count = len(rows)
    step = max(1, (1 << count.bit_length() - 1) // ROWS_OF_AN_OCTAVE)
    missing = -count % step
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
