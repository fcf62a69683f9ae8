"""Linear layers, faster on CPUs that are not Intel's."""

from torch import nn

from hyperconformer.ops.linear import linear


class Linear(nn.Linear):
    """``torch.nn.Linear``, in less time on CPUs that are not Intel's.

    See :func:`hyperconformer.ops.linear.linear`.

    Arguments
    ---------
    in_features : int
        Width of what comes in.
    out_features : int
        Width of what comes out.
    bias : bool
        Whether a bias is added.

    Example
    -------
    >>> import torch
    >>> Linear(4, 6)(torch.rand(2, 9, 4)).shape
    torch.Size([2, 9, 6])
    """

    def forward(self, x):
        """(..., in_features) in, (..., out_features) out."""
        return linear(x, self.weight, self.bias)
