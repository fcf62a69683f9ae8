"""Lengths, padding masks and chunk rules: the one place that says what a frame may see.

Everywhere in this package a padding mask is boolean, shaped (B, T), and
**True marks padding**, as in SpeechBrain and ``torch.nn.MultiheadAttention``.
"""

from dataclasses import dataclass

import torch

from hyperconformer.core.recording import is_recorded


@dataclass(frozen=True)
class ChunkRule:
    """How far a frame may see when an utterance is processed in chunks.

    Frame ``t`` lies in chunk ``t // chunk_frames``. It sees every frame of its
    own chunk, the chunks before it (all of them, or the last ``left_chunks``),
    the ``right_frames`` frames after its chunk, and nothing later.

    The right frames are the look-ahead. Each layer computes them together with the
    chunk, from what lies before the chunk, so that frames look no further ahead in a
    deep encoder than in a flat one. The next chunk computes these frames again.

    Arguments
    ---------
    chunk_frames : int
        Frames in a chunk, at least 1.
    left_chunks : int, optional
        Whole chunks visible before the current one; None means all of them.
    right_frames : int
        Frames visible after the current chunk.

    Raises
    ------
    ValueError
        If a number is out of range.

    Example
    -------
    >>> ChunkRule(16, left_chunks=4).chunk_frames
    16
    """

    chunk_frames: int
    left_chunks: int | None = None
    right_frames: int = 0

    @property
    def window_frames(self) -> int:
        """Frames that are computed together: a chunk and its look-ahead."""
        return self.chunk_frames + self.right_frames

    def check_window(self, frames: int) -> None:
        """Refuse more frames than are computed together, if there are right frames.

        Raises
        ------
        ValueError
            If a sequence would be cut into chunks without their look-ahead.
        """
        if self.right_frames and frames > self.window_frames:
            raise ValueError(
                f"with right frames at most {self.window_frames} frames are computed "
                f"at once, in look_ahead; got {frames}: {self}"
            )

    def check_no_look_ahead(self) -> None:
        """Refuse right frames, where a function does not know them.

        Raises
        ------
        ValueError
            If there are any.
        """
        if self.right_frames:
            raise ValueError(f"right frames are honoured in look_ahead: {self}")

    def __post_init__(self):
        if self.chunk_frames < 1:
            raise ValueError(f"chunk_frames must be >= 1, got {self.chunk_frames}")
        if self.left_chunks is not None and self.left_chunks < 0:
            raise ValueError(
                f"left_chunks must be >= 0 or None (all), got {self.left_chunks}"
            )
        if self.right_frames < 0:
            raise ValueError(f"right_frames must be >= 0, got {self.right_frames}")


def relative_to_frames(relative_lengths, num_frames):
    """Turn SpeechBrain's relative lengths into frame counts.

    Arguments
    ---------
    relative_lengths : torch.Tensor
        (B,) fractions of the padded length, each in (0, 1].
    num_frames : int
        Frames in the padded batch.

    Returns
    -------
    torch.Tensor
        (B,) int64 counts, each from 1 to ``num_frames``.

    Raises
    ------
    ValueError
        If a length is not in (0, 1] (a little rounding above 1 is allowed).

    Example
    -------
    >>> relative_to_frames(torch.tensor([0.5, 1.0]), 7).tolist()
    [4, 7]
    """
    if not is_recorded():
        low, high = relative_lengths.min().item(), relative_lengths.max().item()
        if not (low > 0 and high <= 1 + 1e-4):
            raise ValueError(
                f"relative lengths must lie in (0, 1], got values from {low} to {high}"
            )
    frames = torch.round(relative_lengths * num_frames).long()
    return frames.clamp(min=1, max=num_frames)


def lengths_to_padding_mask(lengths, num_frames):
    """Mark the frames past each utterance's end.

    Arguments
    ---------
    lengths : torch.Tensor
        (B,) integer frame counts.
    num_frames : int
        Frames in the padded batch.

    Returns
    -------
    torch.Tensor
        (B, num_frames) bool, True = padding.

    Example
    -------
    >>> lengths_to_padding_mask(torch.tensor([1, 3]), 3).tolist()
    [[False, True, True], [False, False, False]]
    """
    index = torch.arange(num_frames, device=lengths.device)
    return index[None, :] >= lengths[:, None]


def future_mask(num_frames, device=None):
    """The causal mask: frame i may not see frame j > i.

    Arguments
    ---------
    num_frames : int
        Frames in the sequence.
    device : torch.device, optional
        Where to make it.

    Returns
    -------
    torch.Tensor
        (T, T) bool, True = hidden.

    Example
    -------
    >>> future_mask(2).tolist()
    [[False, True], [False, False]]
    """
    index = torch.arange(num_frames, device=device)
    return index[None, :] > index[:, None]


def chunk_mask(num_frames, rule, device=None):
    """The attention mask of a :class:`ChunkRule`.

    Arguments
    ---------
    num_frames : int
        Frames in the sequence.
    rule : ChunkRule
        Who sees whom.
    device : torch.device, optional
        Where to make it.

    Returns
    -------
    torch.Tensor
        (T, T) bool, True = hidden from the row's frame.

    Example
    -------
    >>> chunk_mask(4, ChunkRule(2, left_chunks=0)).int().tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    """
    rule.check_no_look_ahead()
    chunk = torch.arange(num_frames, device=device) // rule.chunk_frames
    hidden = chunk[None, :] > chunk[:, None]
    if rule.left_chunks is not None:
        hidden = hidden | (chunk[None, :] < chunk[:, None] - rule.left_chunks)
    return hidden


def last_frames(history, num_new, length):
    """What streams remember of their past and of a step: the last rows of each.

    Arguments
    ---------
    history : torch.Tensor
        (B, length + T, ...) what was remembered, then the T rows of the step.
    num_new : torch.Tensor or None
        (B,) int64 from 0 to T, how many rows of the step are real; those after
        them are padding. None = all are real.
    length : int
        Rows to remember.

    Returns
    -------
    torch.Tensor
        (B, length, ...).

    Example
    -------
    >>> history = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    >>> last_frames(history, torch.tensor([2, 0]), 2).tolist()
    [[3, 4], [5, 6]]
    """
    if num_new is None:
        return history[:, history.shape[1] - length :]
    stream = torch.arange(history.shape[0], device=history.device)
    row = num_new[:, None] + torch.arange(length, device=history.device)
    return history[stream[:, None], row]


def check_padding_mask(padding_mask: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse a padding mask that is not bool or not (B, T).

    Arguments
    ---------
    padding_mask : torch.Tensor
        The mask, True = padding.
    x : torch.Tensor
        (B, T, D) the frames it belongs to.

    Raises
    ------
    ValueError
        If dtype or shape differ from what is expected.
    """
    if padding_mask.dtype != torch.bool:
        raise ValueError(
            f"padding_mask must be bool (True = padding), got {padding_mask.dtype}"
        )
    if padding_mask.shape != x.shape[:2]:
        raise ValueError(
            f"padding_mask must have shape {tuple(x.shape[:2])}, "
            f"got {tuple(padding_mask.shape)}"
        )
