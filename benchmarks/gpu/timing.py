"""How long a call takes and how much memory it needs, on a GPU or a CPU."""

import statistics
import time
from typing import NamedTuple

import torch

from benchmarks.gpu.rows import Measure

MIB = 1 << 20


class Times(NamedTuple):
    """Percentiles 20, 50 and 80 of the times of a call, milliseconds."""

    p20: float
    p50: float
    p80: float

    def measures(self, step):
        """Yield them as measures of a step."""
        yield Measure(step, self.p50, "ms")
        yield Measure(f"{step}, percentile 20", self.p20, "ms")
        yield Measure(f"{step}, percentile 80", self.p80, "ms")


def time_call(function, device, quick=False):
    """Time a call, on a GPU by its events and with its cache cleared before.

    Arguments
    ---------
    function : callable
        Takes nothing.
    device : str
        "cuda" or "cpu".
    quick : bool
        Whether three calls are enough; on a CPU alone.

    Returns
    -------
    Times
    """
    if device == "cuda":
        from triton.testing import do_bench

        return Times(*do_bench(function, quantiles=[0.2, 0.5, 0.8]))
    function()
    times = []
    for _ in range(3 if quick else 10):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    fifths = statistics.quantiles(times, n=5, method="inclusive")
    return Times(fifths[0], statistics.median(times), fifths[3])


def peak_mib(function, device):
    """Memory that a call takes at its peak beyond what was held, MiB; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / MIB


def synchronize(device):
    """Wait for a GPU; a CPU has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()
