"""What the parts written for a CPU share: when they run, and in how large blocks."""

import torch

select = torch.ops.aten.threshold_backward
"""``select(x, chooser, threshold)``: x where the chooser is above it, else 0.

One vectorised pass, whatever x holds, and the gradient alike. ``where`` and
``masked_fill`` take over ten times as long on a CPU.
"""


def block_size():
    """Numbers handled at once: what they need in between fits the cache of a core.

    Threads that share an operation must be woken for it, which costs as much as a
    small block itself: for them a block fills the cache that the cores share.
    """
    return 2**17 if torch.get_num_threads() == 1 else 2**21


def is_eager_cpu(x):
    """Whether to compute with ``x`` (float32 or 64) as written for a CPU's cache."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )
