"""Linear layers, faster on CPUs that are not Intel's."""

from torch import nn

from hyperconformer.ops.linear import linear


class _EqualsTorchs(type):
    """Makes :class:`Linear`, but no subclass, equal to ``torch.nn.Linear``.

    Tools that look a layer's class up in a table (``quantize_dynamic``, counters of
    operations) find ours in the place of torch's.
    """

    def __eq__(cls, other):
        return cls is other or (_is_ours(cls) and other is nn.Linear)

    def __hash__(cls):
        return hash(nn.Linear) if _is_ours(cls) else type.__hash__(cls)


def _is_ours(cls):
    return (cls.__module__, cls.__qualname__) == (__name__, "Linear")


class Linear(nn.Linear, metaclass=_EqualsTorchs):
    """``torch.nn.Linear``, in less time on CPUs that are not Intel's.

    See :func:`hyperconformer.ops.linear.linear`. As a class it equals torch's.

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
    >>> Linear == nn.Linear, {nn.Linear: "found"}[Linear]
    (True, 'found')
    """

    def forward(self, x):
        """(..., in_features) in, (..., out_features) out."""
        return linear(x, self.weight, self.bias)
