"""HyperMixing re-associated: the matrices W1 and W2, of shape (T, k), never exist.

With A = GELU(z F' + b), and so W = A G' + c, one head of W2 GELU(W1' V) is::

    reduce     S = A1' V  (e, d),   s = sum_t V_t  (1, d)
    generate   M = GELU(G1 S + c1 s)  (k, d),   R = G2' M  (e, d),   r = c2' M  (1, d)
    expand     out = A2 R + r  (M, d)

Only *reduce* and *expand* see tokens, and nothing in them depends on k. Each keeps
its input alone for backward and computes A again there. They walk over blocks of
tokens so small that what a block needs in between stays in the cache of a CPU core.

S and s are one tensor ``sums`` (H, e + 1, B, d), R and r one ``mixture`` alike; the
last row is absent where the hypernetwork has no biases c. The batch stands third
so that *generate* is one matrix product a head for the whole batch.
"""

import functools
import math

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

gelu_ = torch.ops.aten.gelu_
gelu_backward = torch.ops.aten.gelu_backward.grad_input

BLOCK_SIZE = 256 * 1024
"""Most numbers in a block of tokens: a few such blocks fit the cache of a core."""


def hypermixing(
    values,
    keys,
    queries,
    key_hypernet,
    query_hypernet,
    *,
    codes=None,
    scale=1.0,
    key_padding_mask=None,
    query_padding_mask=None,
):
    """Mix tokens; see :func:`hyperconformer.ops.hypermixing.hypermixing`.

    Arguments and result are those of
    :func:`hyperconformer.ops.hypermixing.reference.hypermixing`, save that half
    precision is computed and returned in float32.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    f1, b1, g1, c1 = key_hypernet.to(dtype)
    f2, b2, g2, c2 = query_hypernet.to(dtype)
    codes = codes if codes is None else codes.to(dtype)
    first, second = _with_biases(g1, c1), _with_biases(g2, c2)
    with torch.autocast(values.device.type, enabled=False):
        num_tokens = values.shape[1] + queries.shape[1]
        compiling = torch.compiler.is_compiling()
        if not compiling and usual_order_is_cheaper(num_tokens, f1, g1):
            a1 = activation_formula(keys, f1, b1, codes, scale, key_padding_mask)
            a2 = activation_formula(queries, f2, b2, codes, scale, query_padding_mask)
            v = _by_head(_fill_padding(values, key_padding_mask).to(dtype), len(f1))
            return usual_order(v, a1, a2, first, second, query_padding_mask)
        reduce, expand = _token_steps(values.device)
        keys = None if keys is values else keys
        has_sum = c1 is not None
        sums = reduce(values, keys, f1, b1, codes, scale, key_padding_mask, has_sum)
        mixture = generate(sums, first, second)
        return expand(queries, f2, b2, codes, scale, query_padding_mask, mixture)


def _token_steps(device):
    """The functions that reduce and expand: blocks for a CPU, whole batches else."""
    if torch.compiler.is_compiling():
        return reduce_formula, expand_formula
    if _is_cpu(device):
        return Reduce.apply, Expand.apply
    return (
        functools.partial(checkpoint, reduce_formula, use_reentrant=False),
        functools.partial(checkpoint, expand_formula, use_reentrant=False),
    )


def _is_cpu(device):
    return device.type == "cpu"


def generate(sums, first, second):
    """From the sums over tokens to the matrix that every query is multiplied with.

    Arguments
    ---------
    sums : torch.Tensor
        (H, e + 1, B, d) S and s; without s, (H, e, B, d).
    first : torch.Tensor
        (H, k, e + 1) G1 and c1 side by side; without c1, (H, k, e).
    second : torch.Tensor
        (H, k, e + 1) G2 and c2 side by side; without c2, (H, k, e).

    Returns
    -------
    torch.Tensor
        (H, e + 1, B, d) R and r; without c2, (H, e, B, d).
    """
    hidden = gelu(torch.bmm(first, sums.flatten(2)))
    mixture = torch.bmm(second.transpose(1, 2), hidden)
    return mixture.unflatten(2, sums.shape[2:])


def _with_biases(weights, biases):
    """(H, k, e) weights with their (H, k) biases, if any, as one more column."""
    if biases is None:
        return weights
    return torch.cat([weights, biases.unsqueeze(-1)], dim=-1)


def usual_order_is_cheaper(num_tokens, fc1_weights, fc2_weights):
    """Whether so few tokens make the explicit (T, k) matrices the cheaper way.

    Multiply-adds a head: ``num_tokens (e d + e k + k d)`` against
    ``num_tokens 2 e d + 2 k e d``.

    Arguments
    ---------
    num_tokens : int
        Keys and queries together, N + M.
    fc1_weights : torch.Tensor
        (H, e, d).
    fc2_weights : torch.Tensor
        (H, k, e).

    Returns
    -------
    bool
    """
    _, e, d = fc1_weights.shape
    k = fc2_weights.shape[1]
    return num_tokens * (e * k + k * d - e * d) < 2 * k * e * d


def activation_formula(tokens, weights, biases, codes, scale, padding_mask):
    """A = GELU(z F' + b), as operations that autograd and export can see.

    Arguments
    ---------
    tokens : torch.Tensor
        (B, T, D) keys or queries.
    weights : torch.Tensor
        (H, e, d) F.
    biases : torch.Tensor, optional
        (H, e) b.
    codes : torch.Tensor, optional
        (>= T, D) position codes.
    scale : float
        Factor on the tokens.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, H, T, e).
    """
    tokens = _fill_padding(tokens, padding_mask).to(weights.dtype)
    codes = None if codes is None else codes[: tokens.shape[1]]
    z = _information(tokens, codes, scale)
    a = _by_head(z, len(weights)) @ weights.transpose(1, 2)
    return gelu(a if biases is None else a + biases.unsqueeze(1))


def usual_order(v, a1, a2, first, second, query_padding_mask):
    """W2 GELU(W1' V) with explicit W1 and W2, for few tokens.

    Arguments
    ---------
    v : torch.Tensor
        (B, H, N, d) values, 0 in padding.
    a1 : torch.Tensor
        (B, H, N, e) activations of the keys.
    a2 : torch.Tensor
        (B, H, M, e) activations of the queries.
    first : torch.Tensor
        (H, k, e + 1) or (H, k, e), see :func:`generate`.
    second : torch.Tensor
        (H, k, e + 1) or (H, k, e).
    query_padding_mask : torch.Tensor, optional
        (B, M) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, M, D).
    """
    hidden = gelu(_affine(a1, first).transpose(2, 3) @ v)
    return _fill_padding(_merge(_affine(a2, second) @ hidden), query_padding_mask)


def reduce_formula(values, keys, weights, biases, codes, scale, padding_mask, has_sum):
    """What :class:`Reduce` computes, as operations that export can see."""
    keys = values if keys is None else keys
    a = activation_formula(keys, weights, biases, codes, scale, padding_mask)
    v = _by_head(_fill_padding(values, padding_mask).to(weights.dtype), len(weights))
    sums = a.transpose(2, 3) @ v
    if has_sum:
        sums = torch.cat([sums, v.sum(2, keepdim=True)], dim=2)
    return sums.permute(1, 2, 0, 3)


def expand_formula(queries, weights, biases, codes, scale, padding_mask, mixture):
    """What :class:`Expand` computes, as operations that export can see."""
    a = activation_formula(queries, weights, biases, codes, scale, padding_mask)
    out = _affine(a, mixture.permute(2, 0, 3, 1))
    return _fill_padding(_merge(out), padding_mask)


class Reduce(torch.autograd.Function):
    """S = A1' V and s = sum_t V_t, block by block; keeps nothing but its inputs.

    Arguments
    ---------
    values : torch.Tensor
        (B, N, D).
    keys : torch.Tensor, optional
        (B, N, D); None where the keys are the values.
    weights : torch.Tensor
        (H, e, d) F1, in the dtype of the result.
    biases : torch.Tensor, optional
        (H, e) b1.
    codes : torch.Tensor, optional
        (>= N, D) position codes.
    scale : float
        Factor on the keys.
    padding_mask : torch.Tensor, optional
        (B, N) bool, True = padding.
    has_sum : bool
        Whether the result ends in the row s.

    Returns
    -------
    torch.Tensor
        (H, e + 1, B, d), or (H, e, B, d) without s.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(
        ctx, values, keys, weights, biases, codes, scale, padding_mask, has_sum
    ):
        ctx.save_for_backward(values, keys, weights, biases, codes, padding_mask)
        ctx.scale, ctx.has_sum = scale, has_sum
        heads, hidden, width = weights.shape
        sums = weights.new_zeros(len(values), heads, hidden + has_sum, width)
        activation = _Activation(weights, biases, codes, scale)
        for block in _blocks(values):
            v, k = _values_and_keys(values, keys, padding_mask, block, weights)
            _, h = activation.before(k, block)
            total = sums[block[0]]
            total[:, :, :hidden] += _each(torch.bmm(gelu_(h).mT, v), heads)
            if has_sum:
                total[:, :, hidden] += _each(v.sum(1), heads)
        return sums.permute(1, 2, 0, 3).contiguous()

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_sums):
        values, keys, weights, biases, codes, padding_mask = ctx.saved_tensors
        heads, hidden, _ = weights.shape
        grad_values = weights.new_empty(values.shape)
        grad_keys = None if keys is None else torch.empty_like(grad_values)
        activation = _Activation(weights, biases, codes, ctx.scale)
        for block in _blocks(values):
            v, k = _values_and_keys(values, keys, padding_mask, block, weights)
            z, h = activation.before(k, block)
            grad_s = _matrices(grad_sums[:, :hidden], block)
            grad_v = torch.bmm(gelu(h), grad_s)
            grad_h = activation.backward(torch.bmm(v, grad_s.mT), h, z)
            if keys is None:
                grad_v.baddbmm_(grad_h, activation.weights_of(block), alpha=ctx.scale)
            else:
                grad_k = torch.bmm(grad_h, activation.weights_of(block))
                _store(grad_keys, block, grad_k, scale=ctx.scale)
            row = _matrices(grad_sums[:, hidden:], block) if ctx.has_sum else None
            _store(grad_values, block, grad_v, row)
        _fill_padding_(grad_values, padding_mask)
        grad_values = grad_values.to(values.dtype)
        grad_keys = None if keys is None else grad_keys.to(keys.dtype)
        return (grad_values, grad_keys, *activation.gradients, *[None] * 4)


class Expand(torch.autograd.Function):
    """out = A2 R + r, block by block; keeps nothing but its inputs.

    Arguments
    ---------
    queries : torch.Tensor
        (B, M, D).
    weights : torch.Tensor
        (H, e, d) F2, in the dtype of the result.
    biases : torch.Tensor, optional
        (H, e) b2.
    codes : torch.Tensor, optional
        (>= M, D) position codes.
    scale : float
        Factor on the queries.
    padding_mask : torch.Tensor, optional
        (B, M) bool, True = padding.
    mixture : torch.Tensor
        (H, e + 1, B, d) R and r, or (H, e, B, d) without r.

    Returns
    -------
    torch.Tensor
        (B, M, D), 0 in padding.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx, queries, weights, biases, codes, scale, padding_mask, mixture):
        ctx.save_for_backward(queries, weights, biases, codes, padding_mask, mixture)
        ctx.scale = scale
        hidden = weights.shape[1]
        has_bias = mixture.shape[1] > hidden
        out = weights.new_empty(queries.shape)
        activation = _Activation(weights, biases, codes, scale)
        for block in _blocks(queries):
            q = _block(queries, block, weights, padding_mask)
            _, h = activation.before(q, block)
            mixed = torch.bmm(gelu_(h), _matrices(mixture[:, :hidden], block))
            row = _matrices(mixture[:, hidden:], block) if has_bias else None
            _store(out, block, mixed, row)
        return _fill_padding_(out, padding_mask)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx, grad_out):
        queries, weights, biases, codes, padding_mask, mixture = ctx.saved_tensors
        heads, hidden, _ = weights.shape
        has_bias = mixture.shape[1] > hidden
        grad_queries = weights.new_empty(queries.shape)
        grad_mixture = mixture.new_zeros(mixture.permute(2, 0, 1, 3).shape)
        activation = _Activation(weights, biases, codes, ctx.scale)
        for block in _blocks(queries):
            q = _block(queries, block, weights, padding_mask)
            z, h = activation.before(q, block)
            g = _block(grad_out, block, weights, padding_mask)
            total = grad_mixture[block[0]]
            total[:, :, :hidden] += _each(torch.bmm(gelu(h).mT, g), heads)
            if has_bias:
                total[:, :, hidden] += _each(g.sum(1), heads)
            grad_a = torch.bmm(g, _matrices(mixture[:, :hidden], block).mT)
            grad_h = activation.backward(grad_a, h, z)
            grad_q = torch.bmm(grad_h, activation.weights_of(block))
            _store(grad_queries, block, grad_q, scale=ctx.scale)
        grad_queries = grad_queries.to(queries.dtype)
        grad_mixture = grad_mixture.permute(1, 2, 0, 3)
        return (grad_queries, *activation.gradients, None, None, None, grad_mixture)


class _Activation:
    """A = GELU(z F' + b) of one block after another, and its gradients.

    Arguments
    ---------
    weights : torch.Tensor
        (H, e, d) F.
    biases : torch.Tensor, optional
        (H, e) b.
    codes : torch.Tensor, optional
        (>= T, D) position codes.
    scale : float
        Factor on the tokens.
    """

    def __init__(self, weights, biases, codes, scale):
        self.weights = weights
        self.biases = None if biases is None else biases.unsqueeze(1)
        self.codes = _by_head(codes, len(weights))
        self.scale = scale
        self.gradients = [None, None]

    def weights_of(self, block):
        """(n H, e, d): F once for each of a block's utterances."""
        return _repeat(self.weights, block)

    def before(self, tokens, block):
        """z (n H, t, d) and z F' + b (n H, t, e) of a block's tokens (n H, t, d)."""
        codes = None if self.codes is None else self.codes[:, block[1]]
        if codes is not None and len(tokens) > len(codes):
            codes = codes.contiguous()  # The first operand decides z's layout.
        z = _information(_each(tokens, len(self.weights)), codes, self.scale)
        z = z.flatten(0, 1)
        weights = self.weights_of(block).mT
        if self.biases is None:
            return z, torch.bmm(z, weights)
        return z, torch.baddbmm(_repeat(self.biases, block), z, weights)

    def backward(self, grad_a, h, z):
        """From the gradient of a block's A to that of z F' + b, which it returns.

        The gradients of F and b are added up in ``gradients``. ``grad_a`` is
        overwritten.
        """
        heads = len(self.weights)
        grad_h = gelu_backward(grad_a, h, grad_input=grad_a)
        new = [_each(torch.bmm(grad_h.mT, z), heads).sum(0), None]
        if self.biases is not None:
            new[1] = _each(grad_h.sum(1), heads).sum(0)
        old = self.gradients
        self.gradients = [a if b is None else a + b for a, b in zip(new, old)]
        return grad_h


def _blocks(tokens):
    """(slice of utterances, slice of time) of each block of (B, T, D) tokens.

    A block holds several short utterances, or a part of a long one.
    """
    batch, length, width = tokens.shape
    size = math.ceil(length / math.ceil(length * width / BLOCK_SIZE))
    count = math.ceil(batch / max(1, BLOCK_SIZE // (length * width)))
    group = math.ceil(batch / count)
    return [
        (slice(b, min(b + group, batch)), slice(t, min(t + size, length)))
        for b in range(0, batch, group)
        for t in range(0, length, size)
    ]


def _block(tokens, block, weights, padding_mask=None):
    """One block (n H, t, d) of tokens (B, T, D), head by head, 0 in padding.

    A view, unless it holds several utterances, or there is a mask, or the dtype is
    not that of ``weights``.
    """
    tokens = tokens[block]
    if padding_mask is not None:
        tokens = _fill_padding(tokens, padding_mask[block])
    return _by_head(tokens.to(weights.dtype), len(weights)).flatten(0, 1)


def _store(tokens, block, result, row=None, scale=1.0):
    """Write a block's result (n H, t, d) into (B, T, D), scaled, and a row added."""
    target = _by_head(tokens[block], len(result) // len(tokens[block]))
    result = _each(result, target.shape[1])
    if row is not None:
        torch.add(_each(row, target.shape[1]), result, alpha=scale, out=target)
    elif scale != 1.0:
        torch.mul(result, scale, out=target)
    else:
        target.copy_(result)


def _each(stacked, heads):
    """(n H, ...) to a view (n, H, ...)."""
    return stacked.unflatten(0, (-1, heads))


def _repeat(matrices, block):
    """(H, i, j) to (n H, i, j): the same for each of a block's utterances."""
    count = block[0].stop - block[0].start
    return matrices.expand(count, *matrices.shape).flatten(0, 1)


def _matrices(stacked, block):
    """(H, i, B, d) to (n H, i, d): those of a block's utterances."""
    return stacked[:, :, block[0]].permute(2, 0, 1, 3).flatten(0, 1)


def _values_and_keys(values, keys, padding_mask, block, weights):
    """One block (n H, t, d) of each; the same where the keys are the values."""
    v = _block(values, block, weights, padding_mask)
    return v, v if keys is None else _block(keys, block, weights, padding_mask)


def _fill_padding(tokens, padding_mask):
    """Zero the padded rows of (..., T, D)."""
    if padding_mask is None:
        return tokens
    return tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0)


def _fill_padding_(tokens, padding_mask):
    """Zero the padded rows of (..., T, D) in place."""
    if padding_mask is None:
        return tokens
    return tokens.masked_fill_(padding_mask.unsqueeze(-1), 0.0)


def _information(tokens, codes, scale):
    """What a hypernetwork reads: scaled tokens plus position codes."""
    if codes is not None:
        return torch.add(codes, tokens, alpha=scale)
    return tokens if scale == 1.0 else tokens * scale


def _by_head(tokens, num_heads):
    """(..., T, D) to a view (..., H, T, d)."""
    if tokens is None:
        return None
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def _merge(tokens):
    """(B, H, T, d) to (B, T, D)."""
    return tokens.transpose(1, 2).flatten(2)


def _affine(a, weights):
    """(..., T, e) times (..., k, e or e + 1) to (..., T, k); column e is the bias."""
    hidden = a.shape[-1]
    out = a @ weights[..., :hidden].mT
    if weights.shape[-1] > hidden:
        out = out + weights[..., hidden:].mT
    return out
