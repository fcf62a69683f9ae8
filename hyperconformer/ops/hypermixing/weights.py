"""The weights of a hypernetwork, as every path of the operator takes them."""

from typing import NamedTuple

import torch


class Hypernet(NamedTuple):
    """One hypernetwork: per head, an MLP from a token to its row of W (T, k).

    ``W_t = GELU(z_t fc1' + b) fc2' + c``, heads H, head width d, hidden width e,
    token-mixing width k; any floating dtype.

    Arguments
    ---------
    fc1_weights : torch.Tensor
        (H, e, d).
    fc1_biases : torch.Tensor, optional
        (H, e), the b above.
    fc2_weights : torch.Tensor
        (H, k, e).
    fc2_biases : torch.Tensor, optional
        (H, k), the c above.
    """

    fc1_weights: torch.Tensor
    fc1_biases: torch.Tensor | None
    fc2_weights: torch.Tensor
    fc2_biases: torch.Tensor | None

    def to(self, dtype):
        """The same weights in another floating dtype."""
        return Hypernet(*(w if w is None else w.to(dtype) for w in self))
