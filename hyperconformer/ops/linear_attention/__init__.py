"""Linear attention: keys and values meet in a (d, e) matrix, so that cost is O(T).

Non-causal: Efficient Attention, arXiv:1812.01243, equation 5. Causal: Transformers are
RNNs, arXiv:2006.16236, equations 9 to 12, with exp(k) and softmax(q) as features.
Exponentials are shifted by running maxima, which changes no result and leaves nothing
to overflow; sums over tokens are float32 or wider.
"""

from hyperconformer.ops.linear_attention import torch_path

__all__ = [
    "causal_linear_attention",
    "causal_linear_attention_step",
    "init_past",
    "linear_attention",
]


def linear_attention(q, k, v, *, key_padding_mask=None, chunk=None):
    """Every query reads one summary of all keys and values.

    y_i = softmax_d(q_i)/sqrt(d) . sum_j softmax_N(k)_j v_j', the first softmax over
    channels, the second over time (arXiv:1812.01243, equation 5). Under a chunk rule
    both softmax and sum over time run over what the rule shows.

    Arguments
    ---------
    q : torch.Tensor
        (B, H, M, d) queries.
    k : torch.Tensor
        (B, H, N, d) keys, or (B, 1, N, d) shared by all heads. What stands at hidden
        keys is never read, here and below.
    v : torch.Tensor
        (B, H, N, e) or (B, 1, N, e) values.
    key_padding_mask : torch.Tensor, optional
        (B, N) bool, True = padding.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        How far each query sees; then M = N.

    Returns
    -------
    torch.Tensor
        (B, H, M, e) in the dtype of ``v``; 0 where no key is visible.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Example
    -------
    >>> import torch
    >>> q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 11, 8)
    >>> linear_attention(q, k, k).shape
    torch.Size([2, 4, 7, 8])
    """
    _check(q, k, v)
    if chunk is not None:
        _check_self(q, k)
    return torch_path.linear_attention(
        q, k, v, key_padding_mask=key_padding_mask, chunk=chunk
    )


def causal_linear_attention(q, k, v, *, blindspot=1, floor=1e-3, key_padding_mask=None):
    """Every query reads a summary of the keys and values before it.

    y_i = sum_j w_ij v_j / max(sum_j w_ij, floor), with the weights
    w_ij = softmax(q_i)/sqrt(d) . exp(k_j), over j <= i with a blindspot of 1
    (arXiv:2006.16236, equation 9), else over the whole buckets of ``blindspot``
    frames before the query's own.

    Arguments
    ---------
    q : torch.Tensor
        (B, H, T, d) queries.
    k : torch.Tensor
        (B, H, T, d) or (B, 1, T, d) keys.
    v : torch.Tensor
        (B, H, T, e) or (B, 1, T, e) values.
    blindspot : int
        Frames in a bucket, at least 1.
    floor : float
        Least denominator.
    key_padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, H, T, e) in the dtype of ``v``; 0 where no key is visible.

    Raises
    ------
    ValueError
        If shapes do not fit or the blindspot is below 1.

    Example
    -------
    >>> import torch
    >>> q = torch.randn(2, 4, 7, 8)
    >>> causal_linear_attention(q, q, q, blindspot=3)[:, :, :3].abs().max().item()
    0.0
    """
    _check(q, k, v, blindspot)
    _check_self(q, k)
    return torch_path.causal_linear_attention(
        q, k, v, blindspot=blindspot, floor=floor, key_padding_mask=key_padding_mask
    )


def init_past(k, v):
    """What :func:`causal_linear_attention_step` remembers before the first frame.

    Arguments
    ---------
    k : torch.Tensor
        (B, Hk, T, d) keys; only shape, dtype and device matter.
    v : torch.Tensor
        (B, Hk, T, e) values; likewise.

    Returns
    -------
    tuple of torch.Tensor
        (B, Hk, d) largest keys and (B, Hk, d, e + 1) sums, float32 or wider, of the
        closed buckets; then the same of the bucket that fills.
    """
    _, values = torch_path._prepare(k, v, None)
    group = torch_path.empty_group(k, values)
    return (*group, *group)


def causal_linear_attention_step(
    q, k, v, *, past, frames_seen, blindspot=1, floor=1e-3, padding_mask=None
):
    """Causal linear attention of the next frames of running streams.

    Steps of any size together equal :func:`causal_linear_attention`.

    Arguments
    ---------
    q : torch.Tensor
        (B, H, n, d) the next queries.
    k : torch.Tensor
        (B, H, n, d) or (B, 1, n, d) the next keys.
    v : torch.Tensor
        (B, H, n, e) or (B, 1, n, e) the next values.
    past : tuple of torch.Tensor
        From :func:`init_past` or the previous step; it is not changed.
    frames_seen : torch.Tensor
        (B,) int64, the frames of each stream before these.
    blindspot : int
        Frames in a bucket, at least 1.
    floor : float
        Least denominator.
    padding_mask : torch.Tensor, optional
        (B, n) bool, True = padding. It follows a stream's real frames and is no time:
        the stream goes on where its real frames ended.

    Returns
    -------
    out : torch.Tensor
        (B, H, n, e) in the dtype of ``v``.
    past : tuple of torch.Tensor
        For the next step.

    Raises
    ------
    ValueError
        If shapes do not fit or the blindspot is below 1.
    """
    _check(q, k, v, blindspot)
    _check_self(q, k)
    return torch_path.causal_linear_attention_step(
        q,
        k,
        v,
        past=past,
        frames_seen=frames_seen,
        blindspot=blindspot,
        floor=floor,
        padding_mask=padding_mask,
    )


def _check(q, k, v, blindspot=1):
    if blindspot < 1:
        raise ValueError(f"blindspot must be >= 1, got {blindspot}")
    heads_fit = k.shape[:3] == v.shape[:3] and k.shape[1] in (1, q.shape[1])
    if not (heads_fit and k.shape[0] == q.shape[0] and k.shape[-1] == q.shape[-1]):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not "
            "fit together as (B, H, M, d), (B, H or 1, N, d), (B, H or 1, N, e)"
        )


def _check_self(q, k):
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            "queries and keys must have one length, "
            f"got {q.shape[2]} and {k.shape[2]} frames"
        )
