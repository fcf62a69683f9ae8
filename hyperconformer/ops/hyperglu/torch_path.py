"""Causal HyperGLU over a sliding window: cost O(T L), memory O(T).

Queries are taken a chunk at a time. The scores of a chunk of C queries form a
band of C + W - 1 keys, of which query c sees W: those from column c on. Two
reshapes turn the band into lag layout and back (:func:`band_to_lags`,
:func:`lags_to_band`), so that a parameter of a lag multiplies a column, and both
matrix products with keys and values stay plain batched products.

The mixings' low-rank parts could leave the window: ``h_ir`` is q_i times a causal
convolution of the keys with U, and mix2's correction is its control times a causal
convolution of the values with V. That is what a kernel would want. Here a chunk's
scores are at hand anyway, and multiplying them by U costs r a score, the direct
convolution r * d, so the mixings are products of small matrices.

Forward keeps only its inputs; backward goes over the chunks again, makes the
scores of each anew and adds up the gradients in place. Nothing larger than one
chunk of scores ever exists.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def hyperglu_windowed(
    q,
    k,
    v,
    *,
    kind="glu",
    norm="out_scale",
    mix1=None,
    mix2=None,
    block_size,
    norm_eps=1e-12,
    past_frames=None,
    chunk_frames=64,
):
    """Causal HyperGLU / HyperMLP in offset layout, for sequences of any length.

    Arguments
    ---------
    q : torch.Tensor
        (B, Hq, T, d) float; Hq = 2H for "glu", H for "relu".
    k : torch.Tensor
        (B, Hq, P + T, d) float: keys of P earlier frames, then of the queries'.
    v : torch.Tensor
        (B, H, P + T, d_v) float.
    kind : str
        "glu" or "relu".
    norm : str
        "out_scale", "l2" (the same function; it differs in rounding) or "none".
    mix1 : LowRankMix, optional
        The mixing before the nonlinearity, Hq heads; must be masked.
    mix2 : LowRankMix, optional
        The mixing after it, H heads; must be masked.
    block_size : int
        Lags L that a query sees, its own frame included.
    norm_eps : float
        The least norm that is divided by.
    past_frames : torch.Tensor, optional
        (B,) int64: frames of each stream before its first query. Where a stream
        is younger than P frames, the rest of its P keys and values must be 0;
        None means that all P are real.
    chunk_frames : int
        Queries handled at once.

    Returns
    -------
    torch.Tensor
        (B, H, T, d_v) float.

    Example
    -------
    >>> q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    >>> hyperglu_windowed(q, k, v, kind="relu", block_size=3).shape
    torch.Size([1, 2, 5, 4])
    """
    lags = min(block_size, k.shape[2])
    # Zeros before the first key: the window of an early query reaches there.
    chunk = min(chunk_frames, q.shape[2])
    pad = (0, 0, chunk - 1, 0)
    operands = [
        q.transpose(0, 1).contiguous(),
        F.pad(k.transpose(0, 1), pad),
        F.pad(v.transpose(0, 1), pad),
        *_mix_operands(mix1, lags),
        *_mix_operands(mix2, lags),
    ]
    setup = _Setup(
        glu=kind == "glu",
        normalised=norm != "none",
        norm_eps=norm_eps,
        lags=lags,
        chunk=chunk,
        past=k.shape[2] - q.shape[2],
        past_frames=past_frames,
    )
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in operands
    )
    run = _Windowed.apply if needs_grad else _forward
    return run(setup, *operands).transpose(0, 1)


class _Setup(NamedTuple):
    """What does not change from chunk to chunk and takes no gradient."""

    glu: bool
    normalised: bool
    norm_eps: float
    lags: int
    chunk: int
    past: int
    past_frames: torch.Tensor | None

    def spans(self, frames):
        """Yield (first query, last query + 1, lags W) of every chunk.

        Lags that no query of the chunk can see are left out of W.
        """
        for start in range(0, frames, self.chunk):
            stop = min(start + self.chunk, frames)
            yield start, stop, min(self.lags, self.past + stop)

    def keys(self, start, stop, lags):
        """The slice of the padded keys that the chunk's band covers."""
        shift = self.chunk - 1 + self.past
        return slice(shift + start - lags + 1, shift + stop)

    def unborn(self, start, stop, lags, device):
        """(B or 1, C, W) bool: slots before the stream's first frame, or None."""
        if self.past_frames is None:
            if lags <= self.past + start + 1:
                return None
            first = torch.full((1,), self.past, device=device)
        else:
            first = self.past_frames
        lag = torch.arange(lags - 1, -1, -1, device=device)
        row = torch.arange(start, stop, device=device)
        return lag > (first[:, None] + row)[..., None]


class _Mix(NamedTuple):
    """A low-rank mixing as one chunk sees it, heads first."""

    U: torch.Tensor  # (H, W, r)
    Vt: torch.Tensor  # (H, r, W)
    gain: torch.Tensor  # (H, 1, W)
    control: torch.Tensor  # (H, B * C, r)


def _mix_operands(mix, lags):
    """U (H, L, r), Vt (H, r, L), gain (H, 1, L), control (H, B, T, r); or Nones."""
    if mix is None:
        return [None] * 4
    return [
        mix.U[:, -lags:],
        mix.Vt[..., -lags:],
        mix.gain()[:, None, -lags:],
        mix.control.transpose(0, 1),
    ]


def _chunk_mix(operands, start, stop, lags):
    """The part of a mixing's operands that a chunk of queries needs."""
    U, Vt, gain, control = operands
    if U is None:
        return None
    rows = control[:, :, start:stop].flatten(1, 2)
    return _Mix(U[:, -lags:], Vt[..., -lags:], gain[..., -lags:], rows)


def band_to_lags(band, lags):
    """Shift row c of a band left by c, so that each column is one lag.

    Arguments
    ---------
    band : torch.Tensor
        (N, C, C + W - 1) rows over the keys of a chunk.
    lags : int
        W.

    Returns
    -------
    torch.Tensor
        (N, C, W); the last column is lag 0.

    Example
    -------
    >>> band_to_lags(torch.tensor([[[1, 2, 9], [9, 3, 4]]]), 2).tolist()
    [[[1, 2], [3, 4]]]
    """
    rows, keys = band.shape[1:]
    return F.pad(band.flatten(1), (0, rows)).unflatten(1, (rows, keys + 1))[..., :lags]


def lags_to_band(x):
    """The inverse of :func:`band_to_lags`, with zeros outside the window.

    Arguments
    ---------
    x : torch.Tensor
        (N, C, W).

    Returns
    -------
    torch.Tensor
        (N, C, C + W - 1).

    Example
    -------
    >>> lags_to_band(torch.tensor([[[1, 2], [3, 4]]])).tolist()
    [[[1, 2, 0], [0, 3, 4]]]
    """
    rows, lags = x.shape[1:]
    keys = rows + lags - 1
    flat = F.pad(x, (0, rows)).flatten(1)[:, : rows * keys]
    return flat.unflatten(1, (rows, keys))


def _mix_forward(x, mix):
    """The mixed rows (H, B * C, W) and the row's rank-r summary x U."""
    if mix is None:
        return x, None
    h = torch.bmm(x, mix.U)
    return torch.baddbmm(x * mix.gain, h * mix.control, mix.Vt), h


def _mix_backward(x, h, mix, gy):
    """The gradients of x, and of U, Vt, gain and control."""
    if mix is None:
        return gy, None
    gz = torch.bmm(gy, mix.Vt.transpose(1, 2))
    gh = gz * mix.control
    gx = torch.baddbmm(gy * mix.gain, gh, mix.U.transpose(1, 2))
    return gx, _Mix(
        U=torch.bmm(x.transpose(1, 2), gh),
        Vt=torch.bmm((h * mix.control).transpose(1, 2), gy),
        gain=(gy * x).sum(1, keepdim=True),
        control=gz * h,
    )


class _Chunk(NamedTuple):
    """What the forward of one chunk leaves for its backward."""

    x: torch.Tensor  # (Hq, B * C, W) scores
    h1: torch.Tensor | None
    y: torch.Tensor  # (Hq, B * C, W) scores after mix1
    gate: torch.Tensor | None  # (H, B * C, W) softplus of y's last H heads
    a: torch.Tensor  # (H, B * C, W) after the nonlinearity
    h2: torch.Tensor | None
    weights: torch.Tensor  # (H * B, C, C + W - 1) after mix2, as a band
    size: torch.Tensor | None  # (H, B * C, 1) norm of y's first H heads
    out: torch.Tensor  # (H, B * C, d_v)


def _chunk_forward(setup, q, k, v, mix1, mix2, unborn):
    """One chunk; q (Hq, B, C, d), k (Hq, B, C + W - 1, d), v (H, B, C + W - 1, d_v)."""
    batch, rows = q.shape[1:3]
    heads = v.shape[0]
    lags = k.shape[2] - rows + 1
    band = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    x = band_to_lags(band, lags).unflatten(0, (-1, batch)).flatten(1, 2)
    y, h1 = _mix_forward(x, mix1)
    if mix1 is not None and unborn is not None:
        y = y.unflatten(1, (batch, rows)).masked_fill(unborn, 0.0).flatten(1, 2)
    a, gate = y[:heads].relu(), None
    if setup.glu:
        gate = F.softplus(y[heads:])
        a = a * gate
    mixed, h2 = _mix_forward(a, mix2)
    weights = lags_to_band(mixed.unflatten(1, (batch, rows)).flatten(0, 1))
    out = torch.bmm(weights, v.flatten(0, 1)).view(heads, batch * rows, -1)
    size = None
    if setup.normalised:
        size = torch.linalg.vector_norm(y[:heads], dim=-1, keepdim=True)
        out = out / size.clamp_min(setup.norm_eps)
    return _Chunk(x, h1, y, gate, a, h2, weights, size, out)


def _chunk_backward(setup, q, k, v, mix1, mix2, unborn, gout):
    """Gradients of the chunk's q, k, v and of its mixings, from gout like v."""
    batch, rows = q.shape[1:3]
    heads = v.shape[0]
    lags = k.shape[2] - rows + 1
    kept = _chunk_forward(setup, q, k, v, mix1, mix2, unborn)
    gout = gout.flatten(1, 2)
    rectified = kept.y[:heads]
    pull = None
    if setup.normalised:
        # out = o / n with n = |y|: do = dout / n, and dy gains -(dout . out) y / n^2,
        # except where n was raised to norm_eps.
        size = kept.size.clamp_min(setup.norm_eps)
        pull = (gout * kept.out).sum(-1, keepdim=True) / size / size
        pull = pull.masked_fill(kept.size < setup.norm_eps, 0.0)
        gout = gout / size
    gout = gout.unflatten(1, (batch, rows)).flatten(0, 1)
    gv = torch.bmm(kept.weights.transpose(1, 2), gout).view(v.shape)
    gmixed = band_to_lags(torch.bmm(gout, v.flatten(0, 1).transpose(1, 2)), lags)
    gmixed = gmixed.unflatten(0, (-1, batch)).flatten(1, 2)
    ga, gmix2 = _mix_backward(kept.a, kept.h2, mix2, gmixed)

    grectified = ga * (rectified > 0)
    if setup.glu:
        ggate = ga * rectified.relu() * kept.y[heads:].sigmoid()
        grectified = grectified * kept.gate
    if pull is not None:
        grectified = torch.addcmul(grectified, pull, rectified, value=-1)
    gy = torch.cat([grectified, ggate]) if setup.glu else grectified
    # Unborn slots hold y = 0, so relu and norm have left gy = 0 there.
    gx, gmix1 = _mix_backward(kept.x, kept.h1, mix1, gy)
    gband = lags_to_band(gx.unflatten(1, (batch, rows)).flatten(0, 1))
    gq = torch.bmm(gband, k.flatten(0, 1)).view(q.shape)
    gk = torch.bmm(gband.transpose(1, 2), q.flatten(0, 1)).view(k.shape)
    return gq, gk, gv, gmix1, gmix2


def _chunk_inputs(setup, span, q, k, v, *mixes):
    """The arguments of :func:`_chunk_forward` for one span of queries."""
    start, stop, lags = span
    keys = setup.keys(*span)
    return (
        q[:, :, start:stop],
        k[:, :, keys],
        v[:, :, keys],
        _chunk_mix(mixes[:4], *span),
        _chunk_mix(mixes[4:], *span),
        setup.unborn(start, stop, lags, q.device),
    )


def _forward(setup, q, *rest):
    """(H, B, T, d_v) from the operands, chunk after chunk."""
    batch, frames = q.shape[1:3]
    outputs = [
        _chunk_forward(setup, *_chunk_inputs(setup, span, q, *rest)).out.unflatten(
            1, (batch, -1)
        )
        for span in setup.spans(frames)
    ]
    return torch.cat(outputs, dim=2)


class _Windowed(torch.autograd.Function):
    """The window with a backward that keeps no scores."""

    @staticmethod
    def forward(ctx, setup, *operands):
        ctx.setup = setup
        ctx.save_for_backward(*operands)
        return _forward(setup, *operands)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        setup, operands = ctx.setup, ctx.saved_tensors
        with torch.autocast(gy.device.type, enabled=False):
            return (None, *_backward(setup, operands, gy))


def _backward(setup, operands, gy):
    """The gradients of the operands, added up chunk after chunk."""
    grads = [
        None if tensor is None else torch.zeros_like(tensor) for tensor in operands
    ]
    gq, gk, gv = grads[:3]
    for span in setup.spans(gy.shape[2]):
        start, stop, lags = span
        keys = setup.keys(*span)
        inputs = _chunk_inputs(setup, span, *operands)
        *chunk, gmix1, gmix2 = _chunk_backward(setup, *inputs, gy[:, :, start:stop])
        gq[:, :, start:stop] += chunk[0]
        gk[:, :, keys] += chunk[1]
        gv[:, :, keys] += chunk[2]
        for gmix, (gU, gVt, ggain, gcontrol) in (
            (gmix1, grads[3:7]),
            (gmix2, grads[7:]),
        ):
            if gmix is not None:
                gU[:, -lags:] += gmix.U
                gVt[..., -lags:] += gmix.Vt
                ggain[..., -lags:] += gmix.gain
                gcontrol[:, :, start:stop] += gmix.control.view_as(
                    gcontrol[:, :, start:stop]
                )
    return grads
