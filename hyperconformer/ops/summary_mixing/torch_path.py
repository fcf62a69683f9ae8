"""Masked means, global, causal or by chunks, with a state for streaming."""

import torch
import torch.nn.functional as F

from hyperconformer.core.masks import last_frames


def summary_mean(
    summaries, *, padding_mask=None, chunk=None, causal=False, past_sums=None
):
    """Mean of the summaries that each frame may see.

    Sums are held in float32 at least. A chunk's sum is made once; what lies before
    a chunk is a cumulative sum of chunk sums, or with a bounded left context a sum of
    the last few, never a difference.

    Arguments
    ---------
    summaries : torch.Tensor
        (B, T, S) floating; padded frames are never read.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        How far each frame may see; None = the whole utterance.
    causal : bool
        Whether frames see nothing after themselves.
    past_sums : torch.Tensor, optional
        (B, P, S + 1) sums of the chunks before, oldest first, and in the last column
        the frames that they count, from :func:`init_past_sums` or an earlier call. The
        first frame here must then begin a chunk, and padding follows the real frames.

    Returns
    -------
    means : torch.Tensor
        (B, M, S), float32 or float64: M = T when causal, otherwise one mean for each
        chunk (one in all without a chunk rule); see :func:`spread_over_frames`.
        0 where no real frame is seen.
    past_sums : torch.Tensor
        (B, P, S + 1) what the next call needs: P = ``left_chunks``, or 1 if that is
        unbounded.

    Example
    -------
    >>> means, _ = summary_mean(torch.tensor([[[1.0], [3.0], [5.0]]]), causal=True)
    >>> means.flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    batch, num_frames, _ = summaries.shape
    summed = _with_counts(summaries, padding_mask)
    size = num_frames
    if chunk is not None:
        chunk.check_window(num_frames)
        size = chunk.window_frames
    left = None if chunk is None else chunk.left_chunks
    summed = F.pad(summed, (0, 0, 0, -num_frames % size))
    summed = summed.unflatten(1, (-1, size))

    chunk_sums = summed.sum(2)
    if past_sums is None:
        past_sums = init_past_sums(batch, summaries.shape[-1], chunk).to(chunk_sums)
    before, past_sums = _sums_before(chunk_sums, past_sums.to(summed.dtype), left)
    inside = summed.cumsum(2) if causal else chunk_sums.unsqueeze(2)
    total = (before.unsqueeze(2) + inside).flatten(1, 2)
    if causal:
        total = total[:, :num_frames]
    return total[..., :-1] / total[..., -1:].clamp(min=1), past_sums


def _with_counts(summaries, padding_mask):
    """Summaries in float32 at least, and 1 in a last channel where a frame is real."""
    summaries = summaries.to(torch.promote_types(summaries.dtype, torch.float32))
    counted = F.pad(summaries, (0, 1), value=1.0)
    if padding_mask is not None:
        counted = counted.masked_fill(padding_mask.unsqueeze(-1), 0.0)
    return counted


def _sums_before(chunk_sums, past_sums, left_chunks):
    """Sums over the chunks visible before each chunk, and the sums to carry on.

    Arguments
    ---------
    chunk_sums : torch.Tensor
        (B, C, S) sum of each chunk.
    past_sums : torch.Tensor
        (B, P, S) sums of earlier ones.
    left_chunks : int or None
        How many chunks are visible before the current one; None = all.

    Returns
    -------
    before : torch.Tensor
        (B, C, S).
    past_sums : torch.Tensor
        (B, left_chunks or 1, S).
    """
    sums = torch.cat([past_sums, chunk_sums], dim=1)
    if left_chunks is None:
        running = sums.cumsum(1)
        return running[:, :-1], running[:, -1:]
    if left_chunks == 0:
        return torch.zeros_like(chunk_sums), past_sums
    windows = sums.unfold(1, left_chunks, 1).sum(-1)
    new_chunks = (chunk_sums[..., -1] > 0).sum(1)
    return windows[:, :-1], last_frames(sums, new_chunks, left_chunks)


def init_past_sums(batch_size, summary_size, chunk=None):
    """What :func:`summary_mean` remembers before the first frame.

    Arguments
    ---------
    batch_size : int
        Streams B.
    summary_size : int
        Width S of the summaries.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        How far each frame may see; None = without a bound to the left.

    Returns
    -------
    torch.Tensor
        (B, P, S + 1) float32 zeros: P = ``left_chunks``, or 1 if that is unbounded.
    """
    unbounded = chunk is None or chunk.left_chunks is None
    rows = 1 if unbounded else chunk.left_chunks
    return torch.zeros(batch_size, rows, summary_size + 1)


def window_mean(
    summaries, radius, *, padding_mask=None, chunk=None, causal=False, past=None
):
    """Mean of the summaries of each frame's neighbours that it may see.

    Arguments
    ---------
    summaries : torch.Tensor
        (B, T, S) floating; padded frames are never read.
    radius : int
        Frames to each side, at least 1.
    padding_mask, chunk, causal
        As for :func:`summary_mean`.
    past : torch.Tensor, optional
        (B, radius, S + 1) from :func:`init_past_window` or an earlier call. The first
        frame here must then begin a chunk, unless the mean is causal and the left
        context unbounded, and padding follows the real frames.

    Returns
    -------
    means : torch.Tensor
        (B, T, S), float32 or float64; 0 where no real frame is seen.
    past : torch.Tensor
        (B, radius, S + 1) what the next call needs: the last real frames' summaries
        and a 1 for each.

    Example
    -------
    >>> means, _ = window_mean(torch.tensor([[[1.0], [3.0], [8.0]]]), 1)
    >>> means.flatten().tolist()
    [2.0, 4.0, 5.5]
    """
    batch, num_frames, width = summaries.shape
    if past is None:
        past = init_past_window(batch, width, radius).to(summaries)
    frames = _with_counts(summaries, padding_mask)
    frames = torch.cat([past.to(frames), frames], dim=1)
    new = None if padding_mask is None else (~padding_mask).sum(1)
    past = last_frames(frames, new, radius)
    size, left = num_frames, None
    if chunk is not None:
        chunk.check_window(num_frames)
        left = chunk.left_chunks
        if left is not None or not causal:
            size = chunk.window_frames
    frames = F.pad(frames, (0, 0, 0, -num_frames % size))
    if size == num_frames:
        spans = frames.unsqueeze(1)
    else:  # (B, C, radius + size, S + 1): each chunk with the frames before it
        spans = frames.unfold(1, radius + size, size).transpose(2, 3)
    if left is not None and left * chunk.chunk_frames < radius:
        hidden = radius - left * chunk.chunk_frames
        spans = F.pad(spans[:, :, hidden:], (0, 0, hidden, 0))
    after = 0 if causal else radius
    spans = F.pad(spans, (0, 0, 0, after)).flatten(0, 1).transpose(1, 2)
    span = radius + 1 + after
    sums = F.avg_pool1d(spans, span, stride=1).transpose(1, 2) * span
    sums = sums.reshape(batch, -1, width + 1)[:, :num_frames]
    return sums[..., :-1] / sums[..., -1:].clamp(min=1), past


def init_past_window(batch_size, summary_size, radius):
    """What :func:`window_mean` remembers before the first frame.

    Arguments
    ---------
    batch_size : int
        Streams B.
    summary_size : int
        Width S of the summaries.
    radius : int
        Frames to each side.

    Returns
    -------
    torch.Tensor
        (B, radius, S + 1) float32 zeros.
    """
    return torch.zeros(batch_size, radius, summary_size + 1)


def spread_over_frames(x, num_frames, *, chunk=None, causal=False):
    """Give each frame its row of what :func:`summary_mean` returned.

    Arguments
    ---------
    x : torch.Tensor
        (B, M, S) the means, or something computed from each.
    num_frames : int
        Frames T.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        As given to :func:`summary_mean`.
    causal : bool
        As given to :func:`summary_mean`.

    Returns
    -------
    torch.Tensor
        (B, T, S), or (B, 1, S) where one mean serves every frame.

    Example
    -------
    >>> from hyperconformer.core.masks import ChunkRule
    >>> x = torch.tensor([[[1.0], [2.0]]])
    >>> spread_over_frames(x, 3, chunk=ChunkRule(2)).flatten().tolist()
    [1.0, 1.0, 2.0]
    """
    if causal or chunk is None:
        return x
    return x.repeat_interleave(chunk.window_frames, dim=1)[:, :num_frames]
