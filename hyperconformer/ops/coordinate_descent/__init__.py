"""Coordinate-descent routing: which k of n tokens an expert gets.

The entropy-regularised linear program of CoLT5 (arXiv:2303.09752, after
arXiv:1502.04759): weights 0 <= w_i <= 1 of total mass kappa that maximise
sum_i w_i s_i - eps sum_i w_i log w_i. Its dual is solved by coordinate descent,

    a = eps (log kappa - logsumexp((s + b) / eps)),    b = -relu(s + a),

starting at b = -s, while eps shrinks (arXiv:2304.04947). Then
w_i = exp((s_i + a + b_i) / eps) = exp(min(s_i + a, 0) / eps).
"""

from hyperconformer.ops.coordinate_descent.routing import (
    Route,
    gather_tokens,
    route,
    route_causally,
)
from hyperconformer.ops.coordinate_descent.torch_path import (
    coordinate_descent,
    select_tokens,
    token_log_weights,
)

__all__ = [
    "Route",
    "coordinate_descent",
    "gather_tokens",
    "route",
    "route_causally",
    "select_tokens",
    "token_log_weights",
]
