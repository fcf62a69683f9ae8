"""HyperMixing under a chunk rule: the sums over tokens become running sums.

In the re-associated form (:mod:`.torch_path`) tokens meet only in sums, one vector
equation per head::

    S = A1' V,   s = sum_t V_t

and sums can be taken up to any chunk. The tokens of chunk c use the sums over the
chunks that c sees::

    S_c = sum over i <= c, i >= c - left_chunks of decay^(C (c - i)) A1_i' V_i

with C frames a chunk; s_c likewise. What follows (*generate*, *expand*) is done chunk
by chunk, all chunks at once. A stream needs to remember the running sum, or with a
bounded left context the sums of its last chunks: they are added anew for every
chunk, never subtracted, so rounding does not build up.
"""

import torch
import torch.nn.functional as F
from torch.nn.functional import gelu

from hyperconformer.core.masks import last_frames
from hyperconformer.core.recording import is_recorded
from hyperconformer.ops.hypermixing.generation import Generate, generate
from hyperconformer.ops.hypermixing.torch_path import (
    _affine,
    _with_biases,
    computed_again,
)


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
):
    """Mix; see :func:`hyperconformer.ops.hypermixing.hypermixing_in_chunks`.

    Backward keeps the input, the visible sums and the mixtures of the chunks, and
    computes the rest again: for tokens of head width d, ``1 + 2 d / C`` times the
    input.
    """
    if chunk is not None:
        chunk.check_no_look_ahead()
    size = x.shape[1] if chunk is None else min(x.shape[1], chunk.chunk_frames)
    with torch.autocast(x.device.type, enabled=False):
        sums, counts = _sums_of_chunks(x, key_hypernet, size, codes, padding_mask)
        sums, past = visible_sums(sums, counts, chunk, decay, normalize, past)
        nets = key_hypernet, query_hypernet
        return _read(x, sums, *nets, size, codes, padding_mask), past


def hypermixing_look_ahead(
    x,
    key_hypernet,
    query_hypernet,
    *,
    chunk,
    codes=None,
    padding_mask=None,
    decay=None,
    normalize=False,
    past,
):
    """Mix chunks with the right frames that follow them.

    With S_c up to chunk c as above, its own frames included, the window of chunk c uses
    S_c and the sum over its right frames, which no other window uses.

    Arguments
    ---------
    x : torch.Tensor
        (B, N, W, D) windows of N chunks.
    key_hypernet, query_hypernet, decay, normalize, past
        As in :func:`hyperconformer.ops.hypermixing.hypermixing_in_chunks`.
    chunk : hyperconformer.core.masks.ChunkRule
        The rule: the first ``chunk_frames`` of a window are its chunk.
    codes : torch.Tensor, optional
        (B, N, W, D) position codes.
    padding_mask : torch.Tensor, optional
        (B, N, W) bool, True = padding.

    Returns
    -------
    out : torch.Tensor
        (B, N, W, D), 0 in padding, float32 for half precision.
    past : torch.Tensor
        (B, P, H, R, d) after the chunks, without their right frames.
    """

    def part(begin, end):
        cut = slice(begin, end)
        mask = None if padding_mask is None else padding_mask[:, :, cut].flatten(1)
        own_codes = None if codes is None else codes[:, :, cut].flatten(1, 2)
        frames = x[:, :, cut]
        size = frames.shape[2]
        sums, counts = _sums_of_chunks(
            frames.flatten(1, 2), key_hypernet, size, own_codes, mask
        )
        return (_with_counts(sums, counts) if normalize else sums), counts

    _, chunks, width, _ = x.shape
    with torch.autocast(x.device.type, enabled=False):
        sums, counts = part(0, chunk.chunk_frames)
        sums, past = _visible_sums(sums, counts, chunk, _factor(decay, chunk), past)
        if width > chunk.chunk_frames:
            sums = sums + part(chunk.chunk_frames, width)[0]
        out = _read(
            x.flatten(1, 2),
            _divided(sums) if normalize else sums,
            key_hypernet,
            query_hypernet,
            width,
            None if codes is None else codes.flatten(1, 2),
            None if padding_mask is None else padding_mask.flatten(1),
        )
    return out.unflatten(1, (chunks, width)), past


def visible_sums(sums, counts, chunk, decay, normalize, past):
    """From the sums of each chunk alone to what each chunk sees.

    Arguments
    ---------
    sums : torch.Tensor
        (H, R, B, N, d) S and s, if any, of N chunks.
    counts : torch.Tensor
        (B, N) int64 real frames of each chunk.
    chunk : hyperconformer.core.masks.ChunkRule or None
        As in :func:`hypermixing_in_chunks`, and so are the following.
    decay : torch.Tensor or None
        (H,).
    normalize : bool
        Whether to divide by the count of frames.
    past : torch.Tensor or None
        (B, P, H, R, d) of the chunks before.

    Returns
    -------
    visible : torch.Tensor
        (H, R, B, N, d).
    past : torch.Tensor or None
        (B, P, H, R, d).
    """
    if normalize:
        sums = _with_counts(sums, counts)
    sums, past = _visible_sums(sums, counts, chunk, _factor(decay, chunk), past)
    return (_divided(sums) if normalize else sums), past


def init_past(key_hypernet, batch_size, *, chunk=None, normalize=False):
    """What :func:`hypermixing_in_chunks` remembers before the first frame.

    Arguments
    ---------
    key_hypernet : Hypernet
        The weights F1, b1, G1, c1.
    batch_size : int
        Streams B.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        The rule of the stream; None = some rule without a bound to the left.
    normalize : bool
        As in :func:`hypermixing_in_chunks`.

    Returns
    -------
    torch.Tensor
        (B, P, H, R, d) zeros, float32 or wider. P = 1: the running sum; with a bounded
        left context P = ``left_chunks``: the sums of the last chunks. Rows R: e of S,
        one of s if there are biases, one of the count of frames if ``normalize``.
    """
    weights = key_hypernet.fc1_weights
    heads, hidden, width = weights.shape
    rows = hidden + (key_hypernet.fc2_biases is not None) + normalize
    shape = (batch_size, past_length(chunk), heads, rows, width)
    dtype = torch.promote_types(weights.dtype, torch.float32)
    return weights.new_zeros(shape, dtype=dtype)


def past_length(chunk):
    """How many sums a stream remembers: one running sum, or one for each left chunk.

    Arguments
    ---------
    chunk : hyperconformer.core.masks.ChunkRule or None
        The rule of the stream.

    Returns
    -------
    int
    """
    unbounded = chunk is None or chunk.left_chunks is None
    return 1 if unbounded else chunk.left_chunks


def sums_over_window(sums, width, factor=None):
    """y_c = sum over l < width of factor^l x_{c - l}, along the chunks.

    By doubling: a window of 2m is two windows of m, so that any width costs about
    log2(width) additions of all chunks. Nothing is ever subtracted.

    Arguments
    ---------
    sums : torch.Tensor
        (H, R, B, N, d) of N chunks; before the first one there is nothing.
    width : int
        Chunks in a window, at least 1.
    factor : torch.Tensor, optional
        (H,) what a chunk's sum is multiplied with for each chunk that it is older;
        None = 1.

    Returns
    -------
    torch.Tensor
        (H, R, B, N, d).

    Example
    -------
    >>> sums_over_window(torch.ones(1, 1, 1, 5, 1), 3).flatten().tolist()
    [1.0, 2.0, 3.0, 3.0, 3.0]
    """
    width = min(width, sums.shape[3])
    total, covered = None, 0
    window, span = sums, 1
    while True:
        if width & span:
            older = _delay(window, covered, factor)
            total = older if total is None else total + older
            covered += span
        if covered == width:
            return total
        window = window + _delay(window, span, factor)
        span *= 2


def _delay(sums, chunks, factor):
    """``chunks`` chunks later, and decayed by as much."""
    if chunks == 0:
        return sums
    delayed = F.pad(sums, (0, 0, chunks, 0))[..., : sums.shape[3], :]
    if factor is None:
        return delayed
    return delayed * (factor**chunks)[:, None, None, None, None]


def _sums_of_chunks(x, key_hypernet, size, codes, mask):
    """(H, R, B, N, d) S and s of each chunk alone, and (B, N) its real frames."""
    f1, b1, _, c1 = key_hypernet.to(torch.promote_types(x.dtype, torch.float32))
    counts = real_frames(x, mask, size)
    sums = computed_again(_reduce, x, f1, b1, c1 is not None, size, codes, mask)
    return sums.unflatten(2, counts.shape), counts


def _read(x, sums, key_hypernet, query_hypernet, size, codes, mask):
    """What the tokens of each chunk read of its sums (H, R, B, N, d), (B, T, D)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    _, _, g1, c1 = key_hypernet.to(dtype)
    f2, b2, g2, c2 = query_hypernet.to(dtype)
    generate_ = generate if is_recorded() else Generate.apply
    mixture = generate_(sums.flatten(2, 3), _with_biases(g1, c1), _with_biases(g2, c2))
    return computed_again(_expand, x, f2, b2, mixture, size, codes, mask)


def _with_counts(sums, counts):
    """The count of frames as one more row."""
    count = counts.to(sums.dtype)[None, None, ..., None].expand_as(sums[:, :1])
    return torch.cat([sums, count], dim=1)


def _divided(sums):
    """Sums divided by their last row, the count of frames."""
    return sums[:, :-1] / sums[:, -1:].clamp(min=1)


def _factor(decay, chunk):
    """(H,) decay a chunk."""
    return None if decay is None or chunk is None else decay**chunk.chunk_frames


def _reduce(x, weights, biases, has_sum, size, codes, mask):
    """S and s of each chunk, (H, e + 1, B N, d); without s, (H, e, B N, d)."""
    v, z = _values_and_information(x, weights, size, codes, mask)
    sums = _activation(z, weights, biases).mT @ v
    if has_sum:
        sums = torch.cat([sums, v.sum(2, keepdim=True)], dim=2)
    return sums.transpose(1, 2)


def _expand(x, weights, biases, mixture, size, codes, mask):
    """A2 R + r for each chunk, (B, T, D), 0 in padding."""
    _, z = _values_and_information(x, weights, size, codes, mask)
    out = _affine(_activation(z, weights, biases), mixture.permute(0, 2, 3, 1))
    # (H, B N, C, d) to (B, N C, D).
    out = out.permute(1, 2, 0, 3).reshape(x.shape[0], -1, x.shape[2])[:, : x.shape[1]]
    return out if mask is None else out.masked_fill(mask.unsqueeze(-1), 0.0)


def _values_and_information(x, weights, size, codes, mask):
    """The frames and what the hypernetwork reads of them, (H, B N, C, d) by chunk."""
    if mask is not None:
        x = x.masked_fill(mask.unsqueeze(-1), 0.0)
    x = x.to(weights.dtype)
    return _by_chunk(x, size, len(weights)), _by_chunk(
        _add(x, codes), size, len(weights)
    )


def _add(x, codes):
    return x if codes is None else x + codes[..., : x.shape[1], :].to(x.dtype)


def _by_chunk(x, size, heads):
    """(B, T, D) to a view (H, B N, C, d) of N chunks of C frames, the last filled."""
    if x.shape[1] % size:  # F.pad by nothing is a copy.
        x = F.pad(x, (0, 0, 0, -x.shape[1] % size))
    return x.reshape(-1, size, heads, x.shape[-1] // heads).permute(2, 0, 1, 3)


def real_frames(x, mask, size):
    """(B, N) how many frames of each chunk are no padding."""
    real = x.new_ones(x.shape[:2], dtype=torch.int64)
    if mask is not None:
        real = (~mask).long()
    return F.pad(real, (0, -x.shape[1] % size)).unflatten(1, (-1, size)).sum(2)


def _activation(z, weights, biases):
    """A = GELU(z F' + b), (H, B N, C, d) to (H, B N, C, e)."""
    a = torch.bmm(z.flatten(1, 2), weights.mT)
    if biases is not None:
        a = a + biases.unsqueeze(1)
    return gelu(a).unflatten(1, z.shape[1:3])


def _visible_sums(sums, counts, chunk, factor, past):
    """What each chunk sees, and what a stream remembers.

    Arguments
    ---------
    sums : torch.Tensor
        (H, R, B, N, d) of each chunk alone.
    counts : torch.Tensor
        (B, N) int64 real frames of each chunk.
    chunk : hyperconformer.core.masks.ChunkRule or None
        The rule.
    factor : torch.Tensor or None
        (H,) decay a chunk.
    past : torch.Tensor or None
        (B, P, H, R, d) of the chunks before.

    Returns
    -------
    visible : torch.Tensor
        (H, R, B, N, d).
    past : torch.Tensor or None
        (B, P, H, R, d).
    """
    remembered = past_length(chunk)
    bounded = chunk is not None and chunk.left_chunks is not None
    start = 0
    if past is not None:
        sums = torch.cat([past.to(sums.dtype).permute(2, 3, 0, 1, 4), sums], dim=3)
        start = remembered
    width = remembered + 1 if bounded else sums.shape[3]
    visible = sums_over_window(sums, width, factor)
    if past is not None:
        # A stream without real chunks here keeps what it had, decay and all.
        new_chunks = (counts > 0).sum(1)
        after = (sums if bounded else visible).permute(2, 3, 0, 1, 4)
        past = last_frames(after, new_chunks, remembered).to(past.dtype)
    return visible[..., start:, :], past
