"""Dropout and an activation before it in torch's operations."""

import torch.nn.functional as F

ACTIVATIONS = {None: lambda x: x, "silu": F.silu, "gelu": F.gelu}


def dropout(x, kept, scale, activation):
    """Keep some elements of an activation's result, scaled.

    Arguments
    ---------
    x : torch.Tensor
        Of any shape.
    kept : torch.Tensor or None
        Of the same shape: 1 for each element that stays, 0 for the others. None =
        all stay, and nothing is scaled.
    scale : float
        Factor on what stays.
    activation : str or None
        A key of ``ACTIVATIONS``.

    Returns
    -------
    torch.Tensor
    """
    y = ACTIVATIONS[activation](x)
    return y if kept is None else y * kept.to(x.dtype).mul_(scale)
