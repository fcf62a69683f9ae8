"""Local attention: softmax attention within a window, in time and memory O(T window).

Two rules say what a window is. The published one of
https://github.com/lucidrains/local-attention cuts time into windows, and a query sees
its own whole window and its whole neighbours (Longformer, arXiv:2004.05150, in
blocks). The exact one sees the keys at a distance of at most ``window`` frames.
"""

import torch

from hyperconformer.ops.local_attention import torch_path

__all__ = ["init_past", "local_attention", "local_attention_step", "rotate_half"]


def local_attention(
    q, k, v, *, window, causal, exact=False, chunk=None, padding_mask=None, scale=None
):
    """Softmax attention of each frame to the frames near it.

    With u = i // window, query i sees the keys j of the windows u - 1, u and u + 1
    (causal: u - 1 and u, j <= i). With ``exact``: \\|i - j\\| <= window (causal:
    i - window <= j <= i). A query that sees no key gives 0.

    Arguments
    ---------
    q : torch.Tensor
        (B, H, T, d) queries; those of padded frames must be finite.
    k : torch.Tensor
        (B, H, T, d) keys, or (B, 1, T, d) shared by all heads. What stands at padded
        keys and values is never read.
    v : torch.Tensor
        (B, H, T, e) or (B, 1, T, e) values.
    window : int
        Frames in a window, at least 1.
    causal : bool
        Whether keys after the query are hidden.
    exact : bool
        Whether the window slides with the query.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        A rule that hides further keys.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding: the key is hidden.
    scale : float, optional
        Factor on the scores; None means 1/sqrt(d).

    Returns
    -------
    torch.Tensor
        (B, H, T, e) in the dtype of ``v``.

    Raises
    ------
    ValueError
        If the window or a shape is out of range.

    Example
    -------
    >>> q = torch.randn(2, 4, 10, 8)
    >>> local_attention(q, q, q, window=3, causal=True).shape
    torch.Size([2, 4, 10, 8])
    """
    _check(q, k, v, window)
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            "queries and keys must have one length, "
            f"got {q.shape[2]} and {k.shape[2]} frames"
        )
    return torch_path.local_attention(
        q,
        k,
        v,
        window=window,
        causal=causal,
        exact=exact,
        chunk=chunk,
        padding_mask=padding_mask,
        scale=scale,
    )


def init_past(k, v, *, window, exact=False):
    """What :func:`local_attention_step` remembers before the first frame.

    Arguments
    ---------
    k : torch.Tensor
        (B, Hk, T, d) keys; only shape, dtype and device matter.
    v : torch.Tensor
        (B, Hk, T, e) values; likewise.
    window : int
        Frames in a window.
    exact : bool
        Whether the window slides with the query.

    Returns
    -------
    tuple of torch.Tensor
        Keys (B, Hk, R, d), values (B, Hk, R, e) and (B, R) bool, True = hidden,
        of the R frames before the next one.
    """
    kept = window if exact else 2 * window - 1
    hidden = torch.ones(k.shape[0], kept, dtype=torch.bool, device=k.device)
    return (
        k.new_zeros(*k.shape[:2], kept, k.shape[3]),
        v.new_zeros(*v.shape[:2], kept, v.shape[3]),
        hidden,
    )


def local_attention_step(
    q, k, v, *, past, frames_seen, window, exact=False, padding_mask=None, scale=None
):
    """Causal local attention of the next frames of running streams.

    Steps of any size together equal :func:`local_attention` with ``causal=True``.

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
    window : int
        Frames in a window.
    exact : bool
        Whether the window slides with the query.
    padding_mask : torch.Tensor, optional
        (B, n) bool, True = padding. It follows a stream's real frames and is no time:
        the stream goes on where its real frames ended.
    scale : float, optional
        Factor on the scores; None means 1/sqrt(d).

    Returns
    -------
    out : torch.Tensor
        (B, H, n, e).
    past : tuple of torch.Tensor
        For the next step.

    Raises
    ------
    ValueError
        If the window or a shape is out of range.
    """
    _check(q, k, v, window)
    return torch_path.local_attention_step(
        q,
        k,
        v,
        past=past,
        frames_seen=frames_seen,
        window=window,
        exact=exact,
        padding_mask=padding_mask,
        scale=scale,
    )


def rotate_half(x, positions, *, base=10000.0):
    """Rotary position codes: channels c and c + d/2 turn by position / base^(2c/d).

    RoFormer, arXiv:2104.09864, equation 34, pairing the halves of a head. Applied to
    queries at i and keys at j, their product depends on i - j alone.

    Arguments
    ---------
    x : torch.Tensor
        (..., T, d) with d even.
    positions : torch.Tensor
        (T,) or (..., T) positions of the frames.
    base : float
        Wavelengths run from 2 pi to 2 pi base.

    Returns
    -------
    torch.Tensor
        (..., T, d).

    Raises
    ------
    ValueError
        If d is odd.

    Example
    -------
    >>> rotate_half(torch.ones(1, 4), torch.tensor([0])).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rotary codes need an even head width, got {width}")
    # In float64, so that late frames have accurate angles.
    powers = torch.arange(0, width, 2, device=x.device, dtype=torch.float64) / width
    angles = positions.to(torch.float64).unsqueeze(-1) * base**-powers
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1)


def _check(q, k, v, window):
    if window < 1:
        raise ValueError(f"window must be >= 1, got {window}")
    heads_fit = k.shape[1] == v.shape[1] and k.shape[1] in (1, q.shape[1])
    if not (heads_fit and k.shape[0] == q.shape[0] and k.shape[-1] == q.shape[-1]):
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} "
            "do not fit together as (B, H, T, d), (B, H or 1, T, d), (B, H or 1, T, e)"
        )
    if k.shape[2] != v.shape[2]:
        raise ValueError(
            f"keys and values must have one length, got {k.shape[2]} and {v.shape[2]}"
        )
