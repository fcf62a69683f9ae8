"""The largest so far, also where a program is exported."""

import math

import torch
import torch.nn.functional as F

from hyperconformer.core.recording import is_exported


def running_maximum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The largest of each element and those before it.

    Arguments
    ---------
    x : torch.Tensor
        Of any shape.
    dim : int
        Along which, counted from 0.

    Returns
    -------
    torch.Tensor
        Of the same shape.

    Example
    -------
    >>> running_maximum(torch.tensor([[1.0, 3.0, 2.0]]), 1).tolist()
    [[1.0, 3.0, 3.0]]
    """
    if not is_exported():
        return x.cummax(dim).values
    # ONNX has no such operator. By doubling; hours of frames, where T is not known yet.
    frames = x.shape[dim]
    steps = (frames - 1).bit_length() if type(frames) is int else 21
    after = [0, 0] * (x.dim() - 1 - dim)
    for shift in (2**step for step in range(steps)):
        before = F.pad(x, [*after, shift, 0], value=-math.inf)
        x = torch.maximum(x, before.narrow(dim, 0, frames))
    return x
