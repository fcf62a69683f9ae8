"""The running maximum, also in exported programs."""

import math

import torch
import torch.nn.functional as F

from hyperconformer.core.recording import is_exported


def running_maximum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The largest of each element and the elements before it.

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
    # ONNX has no such operator. Each shift doubles the frames that are compared; 21
    # shifts reach over hours of frames, where their number is not known yet.
    frames = x.shape[dim]
    steps = (frames - 1).bit_length() if type(frames) is int else 21
    after = [0, 0] * (x.dim() - 1 - dim)
    for shift in (2**step for step in range(steps)):
        before = F.pad(x, [*after, shift, 0], value=-math.inf)
        x = torch.maximum(x, before.narrow(dim, 0, frames))
    return x
