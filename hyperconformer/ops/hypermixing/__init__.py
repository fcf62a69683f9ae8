"""HyperMixing: token mixing by an MLP whose weights the tokens themselves generate.

HyperMixer, https://arxiv.org/abs/2203.03691; several heads: HyperConformer,
https://arxiv.org/abs/2305.18281.

Four paths compute the same: ``reference``, the papers' formula; ``torch``, the
re-associated form that never makes the (T, k) matrices; ``triton``, that form in
kernels for a GPU; ``cpp``, that form in kernels for a CPU.
:mod:`hyperconformer.ops.backend` chooses.
"""

import torch

from hyperconformer.ops.backend import choose_backend
from hyperconformer.ops.hypermixing import chunked, cpp_path, reference, torch_path
from hyperconformer.ops.hypermixing.weights import Hypernet

__all__ = ["Hypernet", "hypermixing", "hypermixing_in_chunks", "hypermixing_packed"]

# The path of Triton's kernels is imported when it is first needed.
_PATHS = {"reference": reference, "torch": torch_path, "cpp": cpp_path}


def hypermixing(
    values,
    keys,
    queries,
    key_hypernet,
    query_hypernet,
    *,
    codes=None,
    frequencies=None,
    scale=1.0,
    key_padding_mask=None,
    query_padding_mask=None,
    backend=None,
):
    """Multi-head HyperMixing, before its LayerNorm.

    Per head, with ``z(x)_t = scale x_t + codes_t``::

        W1 = GELU(z(keys) F1' + b1) G1' + c1        (N, k)
        W2 = GELU(z(queries) F2' + b2) G2' + c2     (M, k)
        out = W2 GELU(W1' values)                   (M, d)

    Self-mixing passes one tensor as values, keys and queries; tied weights pass
    one hypernetwork twice.

    Arguments
    ---------
    values : torch.Tensor
        (B, N, D) what is mixed. What stands in padding is never read, here and below.
    keys : torch.Tensor
        (B, N, D) what the first hypernetwork reads, in the dtype of ``values``.
    queries : torch.Tensor
        (B, M, D) what the second hypernetwork reads, in the dtype of ``values``.
    key_hypernet : Hypernet
        The weights F1, b1, G1, c1.
    query_hypernet : Hypernet
        The weights F2, b2, G2, c2.
    codes : torch.Tensor, optional
        (>= max(N, M), D) position codes; they get no gradient.
    frequencies : torch.Tensor, optional
        (D,) float32, where the codes are sinusoids: row t holds sin(t f_c) in even
        channels c and cos(t f_c) in odd ones, t f_c rounded to float32. A path may
        compute them instead of reading the codes, to 2e-7 for t < 50,000.
    scale : float
        Factor on keys and queries.
    key_padding_mask : torch.Tensor, optional
        (B, N) bool, True = padding.
    query_padding_mask : torch.Tensor, optional
        (B, M) bool, True = padding.
    backend : str, optional
        "reference", "torch", "cpp" or "triton", to force that path. None:
        ``HYPERCONFORMER_BACKEND`` where it is set, else "triton" on devices of
        compute capability 8.0 or 9.0 and "cpp" on CPUs, if the kernels take the
        arguments, and "torch" elsewhere. The Triton kernels need one tensor as values
        and keys, the C++ kernels one as keys and queries, and a C++ compiler.

    Returns
    -------
    torch.Tensor
        (B, M, D), 0 where queries are padding. Its dtype is that of ``values``, but
        float32 for half precision on the torch and C++ paths and for float16 on the
        Triton path: sums over many tokens leave the range of float16 before the
        LayerNorm brings them back.

    Raises
    ------
    ValueError
        If a shape does not fit, or the forced backend is unknown or cannot run.

    Example
    -------
    >>> import torch
    >>> net = Hypernet(torch.randn(2, 4, 4), None, torch.randn(2, 6, 4), None)
    >>> x = torch.randn(3, 5, 8)
    >>> hypermixing(x, x, x, net, net).shape
    torch.Size([3, 5, 8])
    """
    _check_shapes(values, keys, queries, key_hypernet, query_hypernet, codes)
    tensors = values, keys, queries, key_hypernet, query_hypernet
    options = {
        "codes": codes,
        "scale": scale,
        "key_padding_mask": key_padding_mask,
        "query_padding_mask": query_padding_mask,
    }
    masks = key_padding_mask, query_padding_mask
    path = choose_backend(
        "HyperMixing",
        backend,
        values,
        lambda: _kernels().unsupported_reason(*tensors),
        lambda: cpp_path.unsupported_reason(*tensors, codes, masks),
    )
    if path == "triton":
        return _kernels().hypermixing(*tensors, frequencies=frequencies, **options)
    return _PATHS[path].hypermixing(*tensors, **options)


def hypermixing_in_chunks(
    x,
    key_hypernet,
    query_hypernet,
    *,
    chunk=None,
    codes=None,
    padding_mask=None,
    decay=None,
    normalize=False,
    past=None,
    backend=None,
):
    """Multi-head HyperMixing of frames that see as far as a chunk rule lets them.

    Per head, frames t of chunk c mix what c sees, chunks i of C frames each::

        P_c = sum over visible i of decay^(C (c - i)) W1_i' V_i
        out_t = W2_t GELU(P_c)

    with W1, W2 and V as in :func:`hypermixing`. What follows a chunk is never seen,
    and a stream continues from its running sums at the same cost for every chunk.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, D) frames: values, keys and queries. What stands in padding is never
        read.
    key_hypernet : Hypernet
        The weights F1, b1, G1, c1.
    query_hypernet : Hypernet
        The weights F2, b2, G2, c2.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        How far each frame sees; None = the utterance is one chunk.
    codes : torch.Tensor, optional
        (>= T, D) position codes, or (B, T, D) of streams at different positions.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding. With ``past``, padding follows the real frames.
    decay : torch.Tensor, optional
        (H,) in (0, 1], the weight that the frames of earlier chunks lose a frame.
        The frames of one chunk weigh alike.
    normalize : bool
        Whether sums are divided by the (decayed) count of the frames in them.
    past : torch.Tensor, optional
        (B, P, H, R, d) from :func:`.chunked.init_past` or the call before: ``x``
        continues streams, whose frames so far were whole chunks.
    backend : str, optional
        As in :func:`hypermixing`; the reference takes no ``past``.

    Returns
    -------
    out : torch.Tensor
        (B, T, D), 0 in padding, float32 for half precision.
    past : torch.Tensor or None
        (B, P, H, R, d) after the real frames; None without ``past``.

    Raises
    ------
    ValueError
        If a shape does not fit or the forced backend has no form for chunks.

    Example
    -------
    >>> from hyperconformer.core.masks import ChunkRule
    >>> import torch
    >>> weights = [torch.randn(2, n, 4).double() for n in (4, 6)]
    >>> net = Hypernet(weights[0], None, weights[1], None)
    >>> x, rule = torch.randn(3, 10, 8).double(), ChunkRule(4)
    >>> whole, _ = hypermixing_in_chunks(x, net, net, chunk=rule)
    >>> start = chunked.init_past(net, batch_size=3, chunk=rule)
    >>> first, past = hypermixing_in_chunks(
    ...     x[:, :4], net, net, chunk=rule, past=start
    ... )
    >>> rest, past = hypermixing_in_chunks(x[:, 4:], net, net, chunk=rule, past=past)
    >>> torch.allclose(whole, torch.cat([first, rest], dim=1), atol=1e-5)
    True
    """
    _check_shapes(x, x, x, key_hypernet, query_hypernet, codes)
    nets = key_hypernet, query_hypernet
    path = choose_backend(
        "HyperMixing in chunks",
        backend,
        x,
        lambda: _kernels().unsupported_reason(x, x, x, *nets),
    )
    if path == "triton":
        function = _kernels()
    else:
        function = chunked if path == "torch" else reference
    return function.hypermixing_in_chunks(
        x,
        key_hypernet,
        query_hypernet,
        chunk=chunk,
        codes=codes,
        padding_mask=padding_mask,
        decay=decay,
        normalize=normalize,
        past=past,
    )


def hypermixing_packed(
    x,
    starts,
    longest,
    key_hypernet,
    query_hypernet,
    *,
    codes=None,
    frequencies=None,
    scale=1.0,
    backend=None,
):
    """Self-mixing of utterances that stand one after another, without padding.

    Arguments
    ---------
    x : torch.Tensor
        (rows, D) frames of all utterances.
    starts : torch.Tensor
        (B + 1,) int64 cumulative lengths: utterance b is rows ``starts[b]`` to
        ``starts[b + 1]``, at least one. Their values are not checked.
    longest : int
        Frames of the longest utterance.
    key_hypernet : Hypernet
        As in :func:`hypermixing`, and so are the following.
    query_hypernet : Hypernet
        The weights F2, b2, G2, c2.
    codes : torch.Tensor, optional
        (>= longest, D) position codes.
    frequencies : torch.Tensor, optional
        (D,) float32.
    scale : float
        Factor on keys and queries.
    backend : str, optional
        The kernels take all utterances at once, the other paths one after another.

    Returns
    -------
    torch.Tensor
        (rows, D), its dtype as that of :func:`hypermixing`.

    Raises
    ------
    ValueError
        If a shape does not fit, or the forced backend is unknown or cannot run.

    Example
    -------
    >>> import torch
    >>> net = Hypernet(torch.randn(2, 4, 4), None, torch.randn(2, 6, 4), None)
    >>> x, starts = torch.randn(9, 8), torch.tensor([0, 2, 9])
    >>> hypermixing_packed(x, starts, 7, net, net).shape
    torch.Size([9, 8])
    """
    whole, nets = x[None], (key_hypernet, query_hypernet)
    _check_shapes(whole, whole, whole, *nets, None)
    if codes is not None and codes.shape[0] < longest:
        raise ValueError(
            f"{longest} tokens need as many position codes, got {codes.shape[0]}"
        )
    tensors = whole, whole, whole, *nets
    path = choose_backend(
        "HyperMixing",
        backend,
        x,
        lambda: _kernels().unsupported_reason(*tensors),
        lambda: cpp_path.unsupported_reason(*tensors, codes, (None, None)),
    )
    if path == "triton":
        codes = codes if frequencies is None else frequencies
        return _kernels().hypermixing_packed(x, starts, longest, *nets, codes, scale)
    utterances = whole.split(starts.diff().tolist(), dim=1)
    outputs = [
        _PATHS[path].hypermixing(u, u, u, *nets, codes=codes, scale=scale)
        for u in utterances
    ]
    return torch.cat(outputs, dim=1)[0]


def _kernels():
    """The path of kernels, imported when it is first needed."""
    from hyperconformer.ops.hypermixing import triton_path

    return triton_path


def _check_shapes(values, keys, queries, key_hypernet, query_hypernet, codes):
    """Refuse tokens, weights and codes that do not fit together."""
    if values.shape != keys.shape:
        raise ValueError(
            "values and keys must have one shape, "
            f"got {tuple(values.shape)} and {tuple(keys.shape)}"
        )
    if values.shape[::2] != queries.shape[::2]:
        raise ValueError(
            "queries must have the batch and width of values "
            f"{tuple(values.shape)}, got {tuple(queries.shape)}"
        )
    longest = max(values.shape[1], queries.shape[1])
    if min(values.shape[1], queries.shape[1]) == 0:
        raise ValueError("HyperMixing needs at least one token, got an empty sequence")
    for hypernet in (key_hypernet, query_hypernet):
        num_heads, _, head_width = hypernet.fc1_weights.shape
        if num_heads * head_width != values.shape[-1]:
            raise ValueError(
                f"hypernetwork of {num_heads} heads of width {head_width} "
                f"does not fit tokens of width {values.shape[-1]}"
            )
    if codes is not None and codes.shape[-2] < longest:
        raise ValueError(
            f"{longest} tokens need as many position codes, got {codes.shape[-2]}"
        )
