"""Windows: the chunks of a sequence, each with the look-ahead that follows it."""

import torch
import torch.nn.functional as F

from hyperconformer.core.masks import ChunkRule


def unfold(x: torch.Tensor, rule: ChunkRule) -> torch.Tensor:
    """Cut a sequence into windows.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, D).
    rule : hyperconformer.core.masks.ChunkRule
        C frames a chunk, and R frames of look-ahead.

    Returns
    -------
    torch.Tensor
        (B, N, C + R, D) of N = ceil(T / C) chunks; zeros after frame T. Padding before
        that stays as it is.

    Example
    -------
    >>> x = torch.arange(1, 6).view(1, 5, 1)
    >>> unfold(x, ChunkRule(2, right_frames=1)).squeeze(3).tolist()
    [[[1, 2, 3], [3, 4, 5], [5, 0, 0]]]
    """
    size, frames = rule.chunk_frames, x.shape[1]
    x = F.pad(x, (0, 0, 0, -frames % size + rule.right_frames))
    return x.unfold(1, rule.window_frames, size).transpose(2, 3)


def window_padding(
    padding_mask: torch.Tensor | None, x: torch.Tensor, rule: ChunkRule
) -> torch.Tensor:
    """The padding mask of :func:`unfold`.

    Arguments
    ---------
    padding_mask : torch.Tensor or None
        (B, T) bool, True = padding.
    x : torch.Tensor
        (B, T, D) the sequence.
    rule : hyperconformer.core.masks.ChunkRule
        C frames a chunk, and R frames of look-ahead.

    Returns
    -------
    torch.Tensor
        (B, N, C + R) bool, True also after the end.
    """
    real = x.new_ones(x.shape[:2]) if padding_mask is None else (~padding_mask).to(x)
    return unfold(real.unsqueeze(2), rule).squeeze(3) == 0


def own_frames(windows: torch.Tensor, rule: ChunkRule, frames: int) -> torch.Tensor:
    """The chunks without their look-ahead, as one sequence; undoes :func:`unfold`.

    Arguments
    ---------
    windows : torch.Tensor
        (B, N, C + R, D).
    rule : hyperconformer.core.masks.ChunkRule
        C frames a chunk, and R frames of look-ahead.
    frames : int
        T, at most N C.

    Returns
    -------
    torch.Tensor
        (B, T, D).

    Example
    -------
    >>> x, rule = torch.randn(2, 7, 3), ChunkRule(3, right_frames=2)
    >>> torch.equal(own_frames(unfold(x, rule), rule, 7), x)
    True
    """
    return windows[:, :, : rule.chunk_frames].flatten(1, 2)[:, :frames]
