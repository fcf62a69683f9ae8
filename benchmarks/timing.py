"""How things are measured: paired runs, percentiles, memory, agreement."""

import json
import pathlib
import tempfile
import time
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch


class Disagreement(RuntimeError):
    """Two things whose speeds were to be compared do not compute the same."""


class Spread(NamedTuple):
    """The 20th, 50th and 80th percentile of a sample."""

    p20: float
    p50: float
    p80: float


@dataclass
class Row:
    """One line of a results file; what a benchmark does not measure stays None.

    Times are milliseconds, memory is bytes. ``ratio`` is the peer's time over ours,
    pair by pair: the speed-up.
    """

    suite: str
    case: str
    step: str
    contender: str
    frames: int
    peer: str | None = None
    rounds: int | None = None
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    peer_p20_ms: float | None = None
    peer_p50_ms: float | None = None
    peer_p80_ms: float | None = None
    ratio_p20: float | None = None
    ratio_p50: float | None = None
    ratio_p80: float | None = None
    difference: float | None = None
    peak_bytes: int | None = None
    peer_peak_bytes: int | None = None
    kept_bytes: int | None = None
    peer_kept_bytes: int | None = None


FIELDS = [field.name for field in fields(Row)]


def spread(samples):
    """Percentiles of a sample, linearly interpolated between its members.

    Arguments
    ---------
    samples : sequence of float
        At least one number.

    Returns
    -------
    Spread

    Example
    -------
    >>> spread([5.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    Spread(p20=1.0, p50=2.5, p80=4.0)
    """
    return Spread(*(float(p) for p in np.percentile(samples, [20, 50, 80])))


def seconds_of(function):
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def paired_seconds(ours, peer, budget_s, least_rounds=3):
    """Time two functions in turn, so that a slow moment of the machine hits both.

    Arguments
    ---------
    ours : callable
        Takes nothing.
    peer : callable
        Takes nothing.
    budget_s : float
        No further round once this has passed, the warm-up round included.
    least_rounds : int
        Rounds made even so.

    Returns
    -------
    list of (float, float)
        Seconds of both in each round.
    """
    start = time.perf_counter()
    ours(), peer()
    pairs = []
    while len(pairs) < least_rounds or time.perf_counter() - start < budget_s:
        # Who goes first alternates: the second finds the caches warm, or polluted.
        if len(pairs) % 2:
            theirs = seconds_of(peer)
            pairs.append((seconds_of(ours), theirs))
        else:
            own = seconds_of(ours)
            pairs.append((own, seconds_of(peer)))
    return pairs


def difference(got, expected):
    """Largest relative error, by norms, of tensors against what they should be.

    Arguments
    ---------
    got : sequence of torch.Tensor
        Floating tensors.
    expected : sequence of torch.Tensor
        As many, of the same shapes.

    Returns
    -------
    float
        Infinite where a shape differs or a number is not finite.
    """
    if len(got) != len(expected):
        return float("inf")
    errors = [0.0]
    for a, b in zip(got, expected):
        if a.shape != b.shape:
            return float("inf")
        error = ((a - b).norm() / b.norm().clamp_min(1e-30)).item()
        errors.append(error if np.isfinite(error) else float("inf"))
    return max(errors)


def require_agreement(got, expected, tolerance, what):
    """Refuse to compare the speed of things that compute something else.

    Arguments
    ---------
    got : sequence of torch.Tensor
        Our outputs, and gradients where the backward pass is timed.
    expected : sequence of torch.Tensor
        What they should be.
    tolerance : float
        Largest relative error allowed.
    what : str
        Name for the error message.

    Returns
    -------
    float
        The relative error.

    Raises
    ------
    Disagreement
        If it is above ``tolerance``.
    """
    error = difference(got, expected)
    if not error <= tolerance:
        raise Disagreement(
            f"{what}: outputs differ by {error:.1e}, more than {tolerance:.1e}; "
            "no speed-up is reported"
        )
    return error


def peak_bytes(function):
    """Most memory that the CPU allocator gave out at once during a call.

    Arguments
    ---------
    function : callable
        Takes nothing.

    Returns
    -------
    int
        Bytes beyond what was held before.
    """
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = pathlib.Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]"
    )
    held = np.cumsum([0, *(size for _, size in changes)])
    return int(held.max())
