"""HyperMixing of a sequence with itself on a CPU, block by block.

The letters are those of :mod:`.torch_path`. A block has so few tokens that it stays in
the cache, and what it needs in between lies in memory that is used again for every
block and call: the first touch of fresh memory can cost more than the arithmetic on it.
"""

import math
import threading

import torch
from torch.autograd.function import once_differentiable

from hyperconformer.ops.hypermixing import generation
from hyperconformer.ops.hypermixing.generation import (
    gelu_,
    gelu_backward,
    generate,
    generate_backward,
)

gelu_out = torch.ops.aten.gelu.out


class SelfMixing(torch.autograd.Function):
    """Mixing of a sequence with itself, block by block; keeps nothing but its inputs.

    Arguments
    ---------
    values : torch.Tensor
        (B, T, D).
    tokens : torch.Tensor, optional
        (B, T, D) what both hypernetworks read; None = the values.
    f1, b1, first : torch.Tensor
        (H, e, d) F1 in the dtype of the result, (H, e) b1 or None, and (H, k, e + 1) or
        (H, k, e) as for :func:`generate`.
    f2, b2, second : torch.Tensor
        Those of the other hypernetwork.
    codes : torch.Tensor, optional
        (>= T, D) position codes.
    scale : float
        Factor on the tokens.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, T, D), 0 in padding.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(
        ctx,
        values,
        tokens,
        f1,
        b1,
        first,
        f2,
        b2,
        second,
        codes,
        scale,
        padding_mask,
    ):
        blocks = _blocks(values, tokens, f1, codes, scale, padding_mask)
        sums = _sums_over_tokens(values, f1, first)
        for block in blocks:
            block.read()
            a = gelu_(block.affine("a", f1, b1))
            block.add_products(sums, a, block.v)
        mixture = generate(sums, first, second)
        out = f1.new_empty(values.shape)
        for block in blocks:
            if len(blocks) > 1:
                block.read()
            a = gelu_(block.affine("a", f2, b2))
            block.of(out).copy_(block.cleared(block.mixed("y", a, mixture)))
        hypernets = f1, b1, first, f2, b2, second
        small = sums, mixture
        ctx.save_for_backward(values, tokens, *hypernets, codes, padding_mask, *small)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        values, tokens, *hypernets, codes, mask, sums, mixture = ctx.saved_tensors
        f1, b1, first, f2, b2, second = hypernets
        blocks = _blocks(values, tokens, f1, codes, ctx.scale, mask)
        grad_values = f1.new_empty(values.shape)
        grad_tokens = grad_values if tokens is None else torch.empty_like(grad_values)
        # Expand, and what it sends to the tokens that its hypernetwork read.
        grad_mixture = _sums_over_tokens(values, f2, second)
        net2 = _HypernetGradients(f2, b2)
        for block in blocks:
            block.read()
            h = block.affine("h", f2, b2)
            g = block.values_of("g", grad_out)
            block.add_products(grad_mixture, block.gelu("a", h), g)
            grad_h = block.activation_backward("grad", g, mixture, h)
            net2.add(grad_h, block.z)
            grad_z = block.product("y", grad_h, f2)
            torch.mul(grad_z, ctx.scale, out=block.of(grad_tokens))
        grad_sums, grad_first, grad_second = generate_backward(
            sums, first, second, grad_mixture
        )
        # Reduce, and what it sends to the tokens as values and as read.
        net1 = _HypernetGradients(f1, b1)
        for block in blocks:
            if len(blocks) > 1:
                block.read()
            h = block.affine("h", f1, b1)
            grad_v = block.mixed("y", block.gelu("a", h), grad_sums)
            grad_h = block.activation_backward("grad", block.v, grad_sums, h)
            net1.add(grad_h, block.z)
            if tokens is None:
                rows = grad_v.flatten(1, 2)
                rows.baddbmm_(grad_h.flatten(1, 2), f1, alpha=ctx.scale)
                block.of(grad_values).add_(block.cleared(grad_v))
            else:
                block.of(grad_values).copy_(block.cleared(grad_v))
                grad_z = block.product("y", grad_h, f1)
                block.of(grad_tokens).add_(grad_z, alpha=ctx.scale)
        grad_tokens = None if tokens is None else grad_tokens.to(tokens.dtype)
        return (
            grad_values.to(values.dtype),
            grad_tokens,
            net1.weights,
            net1.biases,
            grad_first,
            net2.weights,
            net2.biases,
            grad_second,
            *[None] * 3,
        )


class _Scratch(threading.local):
    """Memory for what a block needs in between, kept from one call to the next."""

    def __init__(self):
        self.buffers = {}

    def __call__(self, name, shape, dtype):
        """A contiguous tensor that is anybody's who asks for that name again."""
        size = math.prod(shape)
        buffer = self.buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            with torch.inference_mode(False):  # Else no use outside of it.
                buffer = torch.empty(size, dtype=dtype, device="cpu")
            self.buffers[name, dtype] = buffer
        return buffer[:size].view(shape)


_scratch = _Scratch()


def _blocks(values, tokens, weights, codes, scale, padding_mask):
    """Every :class:`_Block` of a sequence; arguments as of :class:`SelfMixing`."""
    blocks = []
    for place in _places(values):
        rows = None
        if padding_mask is not None:
            rows = padding_mask[place].flatten().nonzero().flatten()
            rows = rows if len(rows) else None
        code = None if codes is None else codes[None, place[1]]
        blocks.append(_Block(place, values, tokens, weights, code, scale, rows))
    return blocks


class _Block:
    """A few tokens of n utterances, as tensors (H, n, t, d).

    With the heads first, what needs no more than the weights of a head is one matrix
    product a head for all utterances. What the methods return lies in scratch memory
    under the name that they are given.

    Arguments
    ---------
    place : tuple of slice
        Which utterances, and which of their tokens.
    values, tokens, weights, scale
        As in :class:`SelfMixing`.
    codes : torch.Tensor or None
        (1, t, D) position codes of these tokens.
    padding : torch.Tensor or None
        (rows,) which of the n t tokens are padding.
    """

    def __init__(self, place, values, tokens, weights, codes, scale, padding):
        self.place, self.padding = place, padding
        self.values, self.tokens = values, tokens
        self.num_heads, self.dtype = len(weights), weights.dtype
        self.codes = None if codes is None else _head_first(codes, self.num_heads)
        self.scale = scale

    def of(self, tokens):
        """The view (H, n, t, d) of this block in (B, T, D) tokens."""
        return _head_first(tokens[self.place], self.num_heads)

    def cleared(self, x):
        """``x`` (H, n, t, .), its padding set to 0 in place."""
        if self.padding is not None:
            x.flatten(1, 2).index_fill_(1, self.padding, 0.0)
        return x

    def values_of(self, name, tokens):
        """(H, n, t, d) of (B, T, D) tokens, 0 in padding; a view where that will do."""
        view = self.of(tokens)
        if len(view[0]) == 1 and self.padding is None and view.dtype == self.dtype:
            return view
        return self.cleared(_scratch(name, view.shape, self.dtype).copy_(view))

    def read(self):
        """Find ``v``, the values, and ``z``, what the hypernetworks read."""
        self.v = self.z = self.values_of("v", self.values)
        if self.tokens is not None:
            self.z = self.values_of("tokens", self.tokens)
        if self.codes is None and self.scale == 1.0:
            return
        z = _scratch("z", self.z.shape, self.dtype)
        if self.codes is None:
            self.z = torch.mul(self.z, self.scale, out=z)
        else:
            self.z = torch.add(self.codes, self.z, alpha=self.scale, out=z)

    def affine(self, name, weights, biases):
        """z F' + b, (H, n, t, e)."""
        z = self.z.flatten(1, 2)
        out = _scratch(name, (*z.shape[:2], weights.shape[1]), self.dtype)
        if biases is None:
            torch.bmm(z, weights.mT, out=out)
        else:
            torch.baddbmm(biases.unsqueeze(1), z, weights.mT, out=out)
        return out.unflatten(1, self.z.shape[1:3])

    def gelu(self, name, h):
        """GELU of ``h``, which stays."""
        return gelu_out(h, out=_scratch(name, h.shape, self.dtype))

    def product(self, name, x, weights):
        """x (H, n, t, i) times the (H, i, j) weights of its head."""
        shape = *x.shape[:3], weights.shape[2]
        out = _scratch(name, shape, self.dtype)
        torch.bmm(x.flatten(1, 2), weights, out=out.flatten(1, 2))
        return out

    def add_products(self, total, a, v):
        """Add A' V, and where it has one more row the sum of V, to ``total``."""
        total = total[:, :, self.place[0]]
        hidden = a.shape[-1]
        products = torch.bmm(a.flatten(0, 1).mT, v.flatten(0, 1))
        total[:, :hidden] += products.unflatten(0, a.shape[:2]).transpose(1, 2)
        if total.shape[1] > hidden:
            total[:, hidden] += v.sum(2)

    def mixed(self, name, a, mixture):
        """A R + r, (H, n, t, d), with ``mixture`` (H, e + 1, B, d) or without r."""
        hidden = a.shape[-1]
        matrices = self._matrices(mixture, hidden)
        shape = *a.shape[:3], matrices.shape[2]
        out = _scratch(name, shape, self.dtype)
        if mixture.shape[1] == hidden:
            torch.bmm(a.flatten(0, 1), matrices, out=out.flatten(0, 1))
        else:
            rows = mixture[:, hidden, self.place[0]].flatten(0, 1).unsqueeze(1)
            torch.baddbmm(rows, a.flatten(0, 1), matrices, out=out.flatten(0, 1))
        return out

    def activation_backward(self, name, grad, mixture, h):
        """From the gradient of A R + r to that of h, A = GELU(h), (H, n, t, e)."""
        matrices = self._matrices(mixture, h.shape[-1])
        out = _scratch(name, h.shape, self.dtype)
        torch.bmm(grad.flatten(0, 1), matrices.mT, out=out.flatten(0, 1))
        return gelu_backward(out, h, grad_input=out)

    def _matrices(self, mixture, rows):
        """(H n, rows, d) of (H, >= rows, B, d)."""
        return mixture[:, :rows, self.place[0]].transpose(1, 2).flatten(0, 1)


class _HypernetGradients:
    """Sums up the gradients of F and b over the blocks."""

    def __init__(self, weights, biases):
        self.weights = torch.zeros_like(weights)
        self.biases = None if biases is None else torch.zeros_like(biases)

    def add(self, grad_h, z):
        """From the gradient of z F' + b, (H, n, t, e), and z."""
        grad_h = grad_h.flatten(1, 2)
        self.weights.baddbmm_(grad_h.mT, z.flatten(1, 2))
        if self.biases is not None:
            self.biases += grad_h.sum(1)


def _sums_over_tokens(values, weights, net):
    """Zeros of the shape that :func:`generate` takes, (H, e + 1, B, d) or without s."""
    heads, _, width = weights.shape
    return weights.new_zeros(heads, net.shape[2], len(values), width)


def _head_first(tokens, num_heads):
    """(n, t, D) to a view (H, n, t, d)."""
    return tokens.unflatten(-1, (num_heads, -1)).permute(2, 0, 1, 3)


def _places(tokens):
    """(slice of utterances, slice of time) of each block of (B, T, D) tokens.

    A block holds several short utterances, or a part of a long one.
    """
    batch, length, width = tokens.shape
    size = math.ceil(length / math.ceil(length * width / generation.BLOCK_SIZE))
    count = math.ceil(batch / max(1, generation.BLOCK_SIZE // (length * width)))
    group = math.ceil(batch / count)
    return [
        (slice(b, min(b + group, batch)), slice(t, min(t + size, length)))
        for b in range(0, batch, group)
        for t in range(0, length, size)
    ]
