"""The position-wise feed-forward, a block of rows at a time on a CPU.

Its hidden layer is the largest tensor of an encoder layer. Kept in blocks that fit
the cache of a core, and in memory that is used again, activation and dropout cost
little beside the matrix products; a whole hidden layer at a time they cost as much.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from hyperconformer.cpu import block_size, is_eager_cpu
from hyperconformer.dropout import STEPS, Dropout, Noise

_aten = torch.ops.aten
# Each activation, and the gradient of its input from that of its output.
ACTIVATIONS = {
    nn.SiLU: (_aten.silu.out, _aten.silu_backward.grad_input),
    nn.GELU: (_aten.gelu.out, _aten.gelu_backward.grad_input),
}
LEAST_ROWS = 256  # Fewer, and the matrix products are slow.


class FeedForward(nn.Module):
    """Position-wise feed-forward: Linear, activation, dropout, Linear.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    d_ffn : int
        Width of the hidden layer.
    activation : type
        Activation class.
    dropout : float
        Dropout rate of the hidden layer.

    Example
    -------
    >>> FeedForward(16, 32)(torch.rand(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(self, d_model, d_ffn, activation=nn.SiLU, dropout=0.0):
        super().__init__()
        self.ffn = nn.Sequential(
            nn.Linear(d_model, d_ffn),
            activation(),
            Dropout(dropout),
            nn.Linear(d_ffn, d_model),
        )

    def forward(self, x):
        """(B, T, D) in, (B, T, D) out."""
        first, activation, dropout, second = self.ffn
        if not is_eager_cpu(x) or not _in_blocks(activation):
            return self.ffn(x)
        zeroed = round(dropout.p * STEPS) if self.training else 0
        if zeroed == STEPS:
            return self.ffn(x)
        return _FeedForward.apply(
            x, first.weight, first.bias, second.weight, second.bias, activation, zeroed
        )


def _in_blocks(activation):
    """Whether :class:`_FeedForward` knows an activation; of GELUs the exact one."""
    known = type(activation) in ACTIVATIONS
    return known and getattr(activation, "approximate", "none") == "none"


class _FeedForward(torch.autograd.Function):
    """``drop(act(x W1' + b1)) W2' + b2``; keeps x, the hidden layer and the noise.

    Arguments
    ---------
    x : torch.Tensor
        (..., D).
    w1, b1, w2, b2 : torch.Tensor
        (F, D), (F,), (D, F) and (D,).
    activation : torch.nn.Module
        Of a class in ``ACTIVATIONS``.
    zeroed : int
        How many in 65536 of the hidden layer's elements are zeroed, on average.

    Returns
    -------
    torch.Tensor
        (..., D).
    """

    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, activation, zeroed):
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        hidden = rows.new_empty(len(rows), len(w1))
        act, _ = ACTIVATIONS[type(activation)]
        noise = Noise(hidden, zeroed) if zeroed else None
        scaled_w2 = _scaled(w2, noise)
        spare = hidden.new_empty(_block_rows(hidden), len(w1))
        for block in _blocks(hidden):
            h = torch.addmm(b1, rows[block], w1.t(), out=hidden[block])
            a = _activated(act, h, spare, noise, block)
            torch.addmm(b2, a, scaled_w2.t(), out=out[block])
        ctx.save_for_backward(rows, w1, w2, hidden)
        ctx.activation, ctx.noise = type(activation), noise
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, w1, w2, hidden = ctx.saved_tensors
        act, act_backward = ACTIVATIONS[ctx.activation]
        grads = grad.reshape(rows.shape)
        grad_rows = torch.empty_like(rows)
        grad_w1, grad_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        grad_b1 = w1.new_zeros(len(w1))
        scaled_w2 = _scaled(w2, ctx.noise)
        spare, other = hidden.new_empty(2, _block_rows(hidden), len(w1))
        for block in _blocks(hidden):
            x, g, h = rows[block], grads[block], hidden[block]
            grad_w2.addmm_(g.t(), _activated(act, h, spare, ctx.noise, block))
            grad_a = torch.mm(g, scaled_w2, out=other[: len(g)])
            if ctx.noise is not None:
                ctx.noise.zero_(grad_a, block.start * len(w1))
            # Into the other buffer: an operand must not be written to.
            grad_h = act_backward(grad_a, h, grad_input=spare[: len(g)])
            grad_w1.addmm_(grad_h.t(), x)
            grad_b1 += grad_h.sum(0)
            torch.mm(grad_h, w1, out=grad_rows[block])
        if ctx.noise is not None:
            grad_w2 *= ctx.noise.scale
        return (
            grad_rows.view(grad.shape),
            *(grad_w1, grad_b1, grad_w2, grads.sum(0)),
            *(None, None),
        )


def _scaled(w2, noise):
    """W2 with the factor of the elements that the dropout keeps."""
    return w2 if noise is None else w2 * noise.scale


def _activated(act, h, spare, noise, block):
    """Activation and dropout of a block, written into ``spare``."""
    a = act(h, out=spare[: len(h)])
    return a if noise is None else noise.zero_(a, block.start * h.shape[1])


def _block_rows(hidden):
    return max(LEAST_ROWS, block_size() // hidden.shape[1])


def _blocks(hidden):
    """Slices of rows."""
    size, count = _block_rows(hidden), len(hidden)
    return [slice(row, min(row + size, count)) for row in range(0, count, size)]
