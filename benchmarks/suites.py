"""The benchmarks themselves: each yields rows of results as they come."""

import itertools
import sys

import torch

from benchmarks import cases
from benchmarks import streaming as streams
from benchmarks.timing import (
    Disagreement,
    Row,
    paired_seconds,
    peak_bytes,
    require_agreement,
    seconds_of,
    spread,
)
from hyperconformer.training.results import kept_bytes

SWEEP = (100, 300, 1000, 3000, 10_000, 30_000)
MEMORY_FRAMES = 3000


def race(suite, contest, budget_s):
    """Check one contest, then time it.

    Arguments
    ---------
    suite : str
        Name of the benchmark.
    contest : benchmarks.cases.Contest
        What is compared.
    budget_s : float
        Seconds to spend; more where three rounds need more.

    Returns
    -------
    Row

    Raises
    ------
    Disagreement
        If what is timed does not compute what it should.
    """
    name = f"{contest.case}, {contest.step}, against {contest.peer}"
    error = require_agreement(*contest.check(), contest.tolerance, name)
    pairs = paired_seconds(contest.ours, contest.theirs, budget_s)
    ours = spread([1e3 * own for own, _ in pairs])
    theirs = spread([1e3 * other for _, other in pairs])
    ratio = spread([other / own for own, other in pairs])
    return Row(
        suite,
        contest.case,
        contest.step,
        "ours",
        contest.frames,
        peer=contest.peer,
        rounds=len(pairs),
        **{f"{key}_ms": value for key, value in ours._asdict().items()},
        **{f"peer_{key}_ms": value for key, value in theirs._asdict().items()},
        **{f"ratio_{key}": value for key, value in ratio._asdict().items()},
        difference=error,
        peak_bytes=peak_bytes(contest.ours),
        peer_peak_bytes=peak_bytes(contest.theirs),
    )


def races(suite, contests, budget_s):
    """Rows of all contests; those whose outputs disagree are named and left out."""
    for contest in contests:
        try:
            yield race(suite, contest, budget_s)
        except Disagreement as refusal:
            print(f"REFUSED {refusal}", file=sys.stderr)
            yield None


def mixing(budget_s):
    """HyperMixing against SpeechBrain's."""
    contests = map(cases.mixing_contests, (256, 144, 512))
    return races("mixing", itertools.chain.from_iterable(contests), budget_s)


def limit(budget_s):
    """HyperMixing against its four minimal matrix products."""
    return races("limit", cases.limit_contests(256), budget_s)


def linear(budget_s):
    """Linear layers against torch's."""
    return races("linear", cases.linear_contests(), budget_s)


def encoder(budget_s):
    """The whole encoder of SpeechBrain's 8M recipe."""
    return races("encoder", cases.encoder_contests(), budget_s)


def dispatch(budget_s):
    """What it costs to call a C++ kernel through torch's dispatcher."""
    return races("dispatch", cases.dispatch_contests(), budget_s)


def hyperglu(budget_s):
    """HyperGLU in chunks against its dense form."""
    return races("hyperglu", cases.hyperglu_contests(), budget_s)


def scaling(budget_s):
    """Time against length, forward and backward, of every mixer on its own.

    A length that would take a contender more than four times the budget, if its
    time grew with the square of the length, is left out.
    """
    for name, build in cases.sweep_contenders().items():
        last_s, last_frames = 0.0, 1
        for frames in SWEEP:
            if last_s * (frames / last_frames) ** 2 > 4 * budget_s:
                break
            module, x = build(frames), torch.randn(1, frames, 256)

            def run(module=module, x=x):
                cases.run_training(module, x)

            run()
            times = [seconds_of(run) for _ in range(3)]
            while sum(times) < budget_s and len(times) < 50:
                times.append(seconds_of(run))
            ms = spread([1e3 * time for time in times])
            last_s, last_frames = ms.p50 / 1e3, frames
            yield Row(
                "scaling",
                "D=256",
                "training",
                name,
                frames,
                rounds=len(times),
                **{f"{key}_ms": value for key, value in ms._asdict().items()},
            )


def memory(budget_s):
    """What one mixer keeps for its backward pass, and the peak of both passes.

    Nothing here is timed: the figures are exact, ``budget_s`` is not needed.
    """
    for name, build in cases.memory_contenders().items():
        module = build(MEMORY_FRAMES)
        x = torch.randn(1, MEMORY_FRAMES, 256, requires_grad=True)
        fixed = [*module.parameters(), *module.buffers()]
        yield Row(
            "memory",
            f"D=256 1x{MEMORY_FRAMES}",
            "training",
            name,
            MEMORY_FRAMES,
            kept_bytes=kept_bytes(lambda: module(x), fixed),  # noqa: B023
            peak_bytes=peak_bytes(lambda: cases.run_training(module, x)),  # noqa: B023
        )
    for frames in (1000, 2000, 4000):
        operands, options = cases.hyperglu_operands(frames, 256)
        for name, chunk in (("HyperGLU in chunks", 64), ("HyperGLU dense", None)):
            yield Row(
                "memory",
                f"HyperGLU D=256 1x{frames} window 256",
                "training",
                name,
                frames,
                peak_bytes=peak_bytes(
                    lambda: cases.run_hyperglu(operands, options, chunk)  # noqa: B023
                ),
            )


def streaming(budget_s):
    """An hour of a stream in each mixer: ``budget_s`` does not shorten it."""
    for name, model in streams.MODELS.items():
        yield streams.cost_of_an_hour(streams.streaming_model(*model), name)


SUITES = {
    suite.__name__: suite
    for suite in (
        *(mixing, limit, memory, linear, encoder),
        *(dispatch, hyperglu, scaling, streaming),
    )
}
# Only where they are named.
LONG_SUITES = {"encoder", "dispatch", "streaming"}
