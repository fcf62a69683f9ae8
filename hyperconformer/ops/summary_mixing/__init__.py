"""Means over the frames that a frame may see: what SummaryMixing mixes with.

SummaryMixing, https://arxiv.org/abs/2307.07421: each frame is combined with
(1/T) sum_t s(x_t). Causal and chunked means are the same with fewer frames, and so are
the means over windows of Windowed SummaryMixing, https://arxiv.org/abs/2602.09043.
"""

from hyperconformer.ops.summary_mixing.torch_path import (
    init_past_sums,
    init_past_window,
    spread_over_frames,
    summary_mean,
    window_mean,
)

__all__ = [
    "init_past_sums",
    "init_past_window",
    "spread_over_frames",
    "summary_mean",
    "window_mean",
]
