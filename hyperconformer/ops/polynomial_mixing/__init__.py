"""The polynomial of a frame whose mean a polynomial mixer keeps.

PoM, https://arxiv.org/abs/2411.12663 and, for speech, https://arxiv.org/abs/2603.00683:
with k projections W_m of the frames X and a nonlinearity h,

    H(X) = mean over frames of [h(W_1 X); h(W_1 X) o h(W_2 X); ...; product of all k].

The mean is that of :mod:`hyperconformer.ops.summary_mixing`.
"""

from hyperconformer.ops.polynomial_mixing.torch_path import polynomial

__all__ = ["polynomial"]
