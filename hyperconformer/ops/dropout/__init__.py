"""Dropout, and an activation before it, with cheap random numbers on a CPU.

Dropout: arXiv:1207.0580. PyTorch draws one floating-point number for each element
there, one after the other, which costs more than the Linear layer before it.

``reference`` draws in NumPy; ``torch`` applies draws in torch's operations; ``cpp``
does both in kernels for a CPU.
"""

import torch
import torch.nn.functional as F

from hyperconformer.ops.backend import takes_kernels
from hyperconformer.ops.dropout import cpp_path, torch_path

STEPS = 1 << 16


def dropout(x, p, activation=None):
    """Zero each element of an activation's result with probability p, scale the rest.

    The rate is rounded to a multiple of 1 / 65536. ``torch.manual_seed`` decides the
    draws, which are the same on every path and processor.

    Arguments
    ---------
    x : torch.Tensor
        Of any shape, on a CPU.
    p : float
        Probability in [0, 1]; the elements that stay are divided by 1 - p. With 0
        nothing is drawn.
    activation : str, optional
        "silu" or "gelu" (exact), applied before; None = none.

    Returns
    -------
    torch.Tensor
        Of the shape of ``x``.

    Example
    -------
    >>> dropped = dropout(torch.ones(1000, 1000), 0.25)
    >>> bool(abs((dropped == 0).float().mean() - 0.25) < 0.01)
    True
    """
    zeroed = round(p * STEPS)
    if zeroed == STEPS:
        return F.dropout(x, 1.0)
    if zeroed == 0 and activation is None:
        return x
    scale, seed = STEPS / (STEPS - zeroed), 0
    if zeroed:
        seed = torch.randint(torch.iinfo(torch.int64).max, ()).item()
    if takes_kernels(lambda: cpp_path.unsupported_reason(x)):
        return cpp_path.dropout(x, seed, zeroed, scale, activation)
    kept = _kept(x, seed, zeroed) if zeroed else None
    return torch_path.dropout(x, kept, scale, activation)


def _kept(x, seed, zeroed):
    """1 for each element that stays, 0 for the others."""
    # The kernels also draw for the dtypes that they do not compute in.
    ones = torch.ones(x.shape)
    if takes_kernels(lambda: cpp_path.unsupported_reason(ones)):
        return cpp_path.dropout(ones, seed, zeroed, 1.0, None)
    # Imported late: a machine with a GPU may have no NumPy.
    from hyperconformer.ops.dropout.reference import kept_elements

    return torch.from_numpy(kept_elements(x.numel(), seed, zeroed)).view(x.shape)
