"""Causal HyperGLU on a GPU, by the kernels of ``triton_kernels``.

One operator that ``torch.compile`` sees, ``hyperconformer::hyperglu``, and its
backward. Forward keeps its inputs, its outputs, the row summaries of the mixings (r
numbers a row) and the sizes of the rows; no scores.

float32 is multiplied as it is; where an operand is in half precision, all are as TF32,
which holds what bfloat16 and float16 hold.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from hyperconformer.ops.hyperglu import triton_kernels as kernels

MAX_WIDTH = 128
MAX_EXACT_WIDTH = 64
"""Widest query or value of a head, in half precision and in float32."""

MAX_RANK = 16
"""Highest rank of a mixing."""

BLOCK = 16
"""Frames of a tile: with 32, registers spill."""

PROGRAMS = 1024
"""About how many programs add up the gradients of the mixings.

Each writes its sums: fewer write less, more fill the device.
"""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def hyperglu(q, k, v, *, norm, mix1, mix2, block_size, norm_eps, past_frames=None):
    """Mix; see :func:`hyperconformer.ops.hyperglu.hyperglu`.

    Arguments are those of :func:`hyperconformer.ops.hyperglu.hyperglu` for which
    :func:`unsupported_reason` is None; the mixings are float32.

    Returns
    -------
    torch.Tensor
        (B, H, T, d_v) float32.
    """
    born = None
    if past_frames is not None:
        born = (k.shape[2] - q.shape[2] - past_frames).clamp_min(0)
    out, *_ = _forward(
        *(tensor.transpose(1, 2) for tensor in (q, k, v)),
        *_with_control(mix1, q),
        *_with_control(mix2, v),
        born,
        block_size,
        norm != "none",
        norm_eps,
    )
    return out.transpose(1, 2)


def unsupported_reason(q, k, v, mix1, mix2):
    """Why the kernels cannot take these arguments.

    Arguments
    ---------
    q : torch.Tensor
        (B, Hq, T, d).
    k : torch.Tensor
        (B, Hq, P + T, d).
    v : torch.Tensor
        (B, H, P + T, d_v).
    mix1, mix2 : LowRankMix or None
        The mixings.

    Returns
    -------
    str or None
        The reason, or None if they can.
    """
    if not hasattr(tl, "gather"):
        return f"needs a Triton with tl.gather, got version {triton.__version__}"
    dtypes = [tensor.dtype for tensor in (q, k, v)]
    if not set(dtypes) <= set(DTYPES):
        got = ", ".join(map(str, dtypes))
        return f"takes float32, bfloat16 or float16 tensors, got {got}"
    exact = set(dtypes) == {torch.float32}
    widest, limit = max(q.shape[-1], v.shape[-1]), MAX_WIDTH
    if exact:
        limit = MAX_EXACT_WIDTH
    if widest > limit:
        kind = "float32" if exact else "half-precision"
        return f"takes {kind} heads whose width is at most {limit}, got {widest}"
    for mix in (mix1, mix2):
        if mix is not None and not 1 <= mix.U.shape[2] <= MAX_RANK:
            return f"takes mixings of rank 1 to {MAX_RANK}, got {mix.U.shape[2]}"
    return None


def _with_control(mix, scores):
    """A mixing as (H, 2 r + 1, L) U', V and gain, and its control (B, T, H, r).

    Without one, r = 0, for the heads and frames of ``scores``.
    """
    if mix is None:
        batch, heads, frames = scores.shape[:3]
        parameters = scores.new_empty(heads, 1, 0, dtype=torch.float32)
        return parameters, parameters.new_empty(batch, frames, heads, 0)
    parameters = torch.cat([mix.U.mT, mix.Vt, mix.gain()[:, None]], dim=1)
    return parameters, mix.control.transpose(1, 2)


class _Operands(NamedTuple):
    """The tensors of the operator, frames first and heads second."""

    q: Tensor  # (B, T, Hq, d)
    k: Tensor  # (B, P + T, Hq, d)
    v: Tensor  # (B, P + T, H, d_v)
    mix1: Tensor  # (Hq, 2 r1 + 1, L) float32
    control1: Tensor  # (B, T, Hq, r1) float32
    mix2: Tensor  # (H, 2 r2 + 1, L) float32
    control2: Tensor  # (B, T, H, r2) float32
    born: Tensor | None  # (B,) int64, the first key that is there

    def contiguous(self):
        """The same, as the kernels read them."""
        return _Operands(*(t if t is None else t.contiguous() for t in self))

    def new_results(self):
        """Room for outputs, row summaries of both mixings, and sizes of rows."""
        shape = *self.q.shape[:2], *self.v.shape[2:]
        return (
            self.control1.new_empty(shape),
            torch.empty_like(self.control1, memory_format=torch.contiguous_format),
            torch.empty_like(self.control2, memory_format=torch.contiguous_format),
            self.control1.new_empty(shape[:3]),
        )

    def constants(self, normalised):
        """What the kernels are compiled for."""
        exact = all(t.dtype == torch.float32 for t in (self.q, self.k, self.v))
        return kernel_constants(
            WIDTH=self.q.shape[3],
            VALUE_WIDTH=self.v.shape[3],
            RANK1=self.control1.shape[3],
            RANK2=self.control2.shape[3],
            GLU=self.q.shape[2] > self.v.shape[2],
            NORMALISED=normalised,
            HAS_BORN=self.born is not None,
            PRECISION="ieee" if exact else "tf32",
        )


@torch.library.custom_op("hyperconformer::hyperglu", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mix1: Tensor,
    control1: Tensor,
    mix2: Tensor,
    control2: Tensor,
    born: Tensor | None,
    slots: int,
    normalised: bool,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outputs (B, T, H, d_v), row summaries of both mixings, sizes of rows: float32."""
    operands = _Operands(q, k, v, mix1, control1, mix2, control2, born).contiguous()
    results = operands.new_results()
    batch, frames, heads = results[0].shape[:3]
    constants = operands.constants(normalised)
    grid = heads, triton.cdiv(frames, BLOCK), batch
    sizes = frames, k.shape[1] - frames, slots, norm_eps
    kernels.forward_kernel[grid](*operands, *results, *sizes, **constants)
    return results


@_forward.register_fake
def _(q, k, v, mix1, control1, mix2, control2, born, slots, normalised, norm_eps):
    return _Operands(q, k, v, mix1, control1, mix2, control2, born).new_results()


@torch.library.custom_op("hyperconformer::hyperglu_backward", mutates_args=())
def _backward(
    grad: Tensor,
    pull: Tensor,
    summary1: Tensor,
    summary2: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mix1: Tensor,
    control1: Tensor,
    mix2: Tensor,
    control2: Tensor,
    born: Tensor | None,
    slots: int,
    normalised: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, and of each mixing and its control.

    ``grad`` (B, T, H, d_v) float32 is that of the outputs before their division,
    ``pull`` (B, T, H) float32 what the size of a row takes of its scores.
    """
    operands = _Operands(q, k, v, mix1, control1, mix2, control2, born).contiguous()
    given = *operands, summary1, summary2, grad.contiguous(), pull.contiguous()
    grads = _Operands(*(torch.empty_like(t) for t in operands[:7]), None)  # type: ignore
    of_summaries = torch.empty_like(summary1), torch.empty_like(summary2)
    batch, frames, heads = grad.shape[:3]
    sizes = frames, k.shape[1] - frames, slots

    constants = operands.constants(normalised)

    written = grads.q, grads.control1, grads.control2, *of_summaries
    grid = heads, triton.cdiv(frames, BLOCK), batch
    kernels.backward_queries_kernel[grid](*given, *written, *sizes, **constants)

    written = *of_summaries, grads.k, grads.v  # type: ignore[assignment]
    grid = heads, triton.cdiv(k.shape[1], BLOCK), batch
    kernels.backward_keys_kernel[grid](*given, *written, *sizes, **constants)

    if mix1.numel() or mix2.numel():
        distances = triton.cdiv(slots + BLOCK - 1, BLOCK)
        tiles = triton.cdiv(frames, BLOCK)
        span = BLOCK * triton.cdiv(tiles * heads * distances * batch, PROGRAMS)
        span = min(span, BLOCK * tiles)
        spans = triton.cdiv(frames, span)
        parts = [
            mix.new_empty(batch * spans, len(mix), distances, mix.shape[1], 2 * BLOCK)
            for mix in (mix1, mix2)
        ]
        written = *of_summaries, *parts  # type: ignore[assignment]
        grid = heads, distances, batch * spans
        kernels.backward_mixes_kernel[grid](
            *given, *written, *sizes, span, spans, **constants
        )
        grads.mix1.copy_(_join(parts[0], mix1.shape[2]))
        grads.mix2.copy_(_join(parts[1], mix2.shape[2]))
    return tuple(grads[:7])  # type: ignore[return-value]


@_backward.register_fake
def _(
    grad,
    pull,
    summary1,
    summary2,
    q,
    k,
    v,
    mix1,
    control1,
    mix2,
    control2,
    born,
    slots,
    normalised,
):
    tensors = q, k, v, mix1, control1, mix2, control2
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors
    )


def _keep(ctx, inputs, output):
    """Keep inputs and outputs."""
    *operands, ctx.slots, ctx.normalised, ctx.norm_eps = inputs
    ctx.save_for_backward(*output, *operands)


def _gradients(ctx, grad, *_):
    out, summary1, summary2, size, *operands = ctx.saved_tensors
    pull = size
    if ctx.normalised:
        # out = o / n with n = |y|: do = dout / n, and dy gains -(do . out) y / n,
        # except where n was raised to norm_eps.
        n = size.clamp_min(ctx.norm_eps)
        grad = grad / n[..., None]
        pull = ((grad * out).sum(-1) / n).masked_fill(size < ctx.norm_eps, 0.0)
    gradients = _backward(
        grad, pull, summary1, summary2, *operands, ctx.slots, ctx.normalised
    )
    return (*gradients, *[None] * 4)


_forward.register_autograd(_gradients, setup_context=_keep)


def _join(parts, slots):
    """The gradient (H, 2 r + 1, L) of a mixing from what programs wrote.

    Those are (parts, H, distances, 2 r + 1, 2 BLOCK), of which distance n begins at lag
    ``(n - 1) BLOCK + 1``: the second half of each and the first half of the next are
    the same lags.
    """
    near, far = parts.sum(0).chunk(2, dim=-1)
    lags = F.pad(near, (0, 0, 0, 0, 0, 1)) + F.pad(far, (0, 0, 0, 0, 1, 0))
    lags = lags.transpose(1, 2).flatten(2)
    return lags[..., BLOCK - 1 : BLOCK - 1 + slots].flip(-1)


def kernel_constants(**constants):
    """What the kernels are compiled for, and how many warps and stages they get.

    Arguments
    ---------
    **constants : int, bool or str
        WIDTH, VALUE_WIDTH, RANK1, RANK2, GLU, NORMALISED, HAS_BORN and PRECISION.

    Returns
    -------
    dict of str to Any
        Their compile-time arguments and options, by name.
    """
    width, value_width = (_block(constants[name]) for name in ("WIDTH", "VALUE_WIDTH"))
    return {
        **constants,
        "BLOCK": BLOCK,
        "BLOCK_W": width,
        "BLOCK_V": value_width,
        "BLOCK_R": _block(max(constants["RANK1"], constants["RANK2"])),
        "num_warps": 4 if max(width, value_width) <= 32 else 8,
        "num_stages": 1,
        # Or else the assembler spills a little for the sake of more blocks at once.
        "maxnreg": 255,
    }


def _block(size):
    """The next power of two that the matrix unit takes."""
    return max(16, triton.next_power_of_2(size))
