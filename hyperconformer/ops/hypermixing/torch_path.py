"""HyperMixing re-associated: the matrices W1 and W2, of shape (T, k), never exist.

With A = GELU(z F' + b), and so W = A G' + c, one head of W2 GELU(W1' V) is::

    reduce     S = A1' V  (e, d),   s = sum_t V_t  (1, d)
    generate   M = GELU(G1 S + c1 s)  (k, d),   R = G2' M  (e, d),   r = c2' M  (1, d)
    expand     out = A2 R + r  (M, d)

Only *reduce* and *expand* see tokens, and nothing in them depends on k. For backward
their input is kept, A is computed again.

S and s are one tensor ``sums`` (H, e + 1, B, d), R and r one ``mixture`` alike; the
last row is absent where the hypernetwork has no biases c. The batch stands third
so that *generate* is one matrix product a head for the whole batch.
"""

import torch
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from hyperconformer.core.recording import is_recorded
from hyperconformer.ops.hypermixing.generation import generate


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
    codes = codes if codes is None else codes.to(dtype).detach()
    first, second = _with_biases(g1, c1), _with_biases(g2, c2)
    with torch.autocast(values.device.type, enabled=False):
        num_tokens = values.shape[1] + queries.shape[1]
        if not is_recorded() and usual_order_is_cheaper(num_tokens, f1, g1):
            a1 = activation_formula(keys, f1, b1, codes, scale, key_padding_mask)
            a2 = activation_formula(queries, f2, b2, codes, scale, query_padding_mask)
            v = _by_head(_fill_padding(values, key_padding_mask).to(dtype), len(f1))
            return usual_order(v, a1, a2, first, second, query_padding_mask)
        keys_to_read = None if keys is values else keys
        sums = computed_again(
            reduce_formula,
            values,
            keys_to_read,
            f1,
            b1,
            codes,
            scale,
            key_padding_mask,
            c1 is not None,
        )
        mixture = generate(sums, first, second)
        return computed_again(
            expand_formula, queries, f2, b2, codes, scale, query_padding_mask, mixture
        )


def computed_again(function, *arguments):
    """Call a function whose backward shall compute it again, not remember it.

    Arguments
    ---------
    function : callable
        Draws no random numbers.
    *arguments
        Its arguments.

    Returns
    -------
    object
        What it returns.
    """
    if is_recorded() or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(
        function, *arguments, use_reentrant=False, preserve_rng_state=False
    )


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
    """*Reduce*, (H, e + 1, B, d) or without s (H, e, B, d)."""
    keys = values if keys is None else keys
    a = activation_formula(keys, weights, biases, codes, scale, padding_mask)
    v = _by_head(_fill_padding(values, padding_mask).to(weights.dtype), len(weights))
    sums = a.transpose(2, 3) @ v
    if has_sum:
        sums = torch.cat([sums, v.sum(2, keepdim=True)], dim=2)
    return sums.permute(1, 2, 0, 3)


def expand_formula(queries, weights, biases, codes, scale, padding_mask, mixture):
    """*Expand*, (B, M, D), 0 in padding."""
    a = activation_formula(queries, weights, biases, codes, scale, padding_mask)
    out = _affine(a, mixture.permute(2, 0, 3, 1))
    return _fill_padding(_merge(out), padding_mask)


def _fill_padding(tokens, padding_mask):
    """Zero the padded rows of (..., T, D)."""
    if padding_mask is None:
        return tokens
    return tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0)


def _information(tokens, codes, scale):
    """What a hypernetwork reads: scaled tokens plus position codes."""
    if codes is not None:
        return torch.add(codes, tokens, alpha=scale)
    return tokens if scale == 1.0 else tokens * scale


def _by_head(tokens, num_heads):
    """(..., T, D) to a view (..., H, T, d)."""
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
