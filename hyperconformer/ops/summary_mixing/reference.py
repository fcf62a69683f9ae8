"""The means of :mod:`.torch_path`, frame by frame, to be read."""

import torch


def summary_mean_reference(
    summaries, *, padding_mask=None, chunk=None, causal=False, radius=None
):
    """Mean of the summaries that each frame may see.

    Arguments
    ---------
    summaries : torch.Tensor
        (B, T, S) floating.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        How far each frame may see.
    causal : bool
        Whether frames see nothing after themselves.
    radius : int, optional
        Frames to each side that a frame sees; None = all.

    Returns
    -------
    torch.Tensor
        (B, T, S); 0 where a frame sees no real frame.

    Example
    -------
    >>> summaries = torch.tensor([[[1.0], [3.0], [5.0]]])
    >>> summary_mean_reference(summaries, causal=True).flatten().tolist()
    [1.0, 2.0, 3.0]
    """
    batch, num_frames, _ = summaries.shape
    means = torch.zeros_like(summaries)
    for b in range(batch):
        for t in range(num_frames):
            seen = [
                summaries[b, j]
                for j in range(num_frames)
                if not (causal and j > t)
                and (radius is None or abs(j - t) <= radius)
                and (chunk is None or _in_reach(t, j, chunk))
                and (padding_mask is None or not padding_mask[b, j])
            ]
            if seen:
                means[b, t] = torch.stack(seen).mean(0)
    return means


def _in_reach(t, j, chunk):
    """Whether the chunk rule lets frame t see frame j."""
    back = t // chunk.chunk_frames - j // chunk.chunk_frames
    return back >= 0 and (chunk.left_chunks is None or back <= chunk.left_chunks)
