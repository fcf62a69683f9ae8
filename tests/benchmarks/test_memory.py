"""The memory targets: exact figures, the same on every machine."""

import pytest
import torch

from benchmarks import cases
from benchmarks.timing import peak_bytes
from hyperconformer.training.results import kept_bytes

LENGTH, WIDTH = 3000, 256


def kept_tensors(module):
    """What a mixer keeps for its backward pass, in tensors of (T, D)."""
    x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)
    fixed = [*module.parameters(), *module.buffers()]
    return kept_bytes(lambda: module(x), fixed) / (x.numel() * x.element_size())


def test_hypermixing_keeps_at_most_four_tensors():
    ours, theirs = cases.hypermixing_pair(WIDTH, LENGTH)
    kept = kept_tensors(ours)
    assert 1 <= kept <= 4  # Without its input there is no gradient.
    assert kept_tensors(theirs) > 3 * kept


@pytest.mark.parametrize("step", ["forward", "training"])
def test_hypermixing_never_makes_the_hypernets_output(step):
    """The peer's (T, k) matrices of all heads are four (T, D) tensors each."""
    ours, theirs = cases.hypermixing_pair(WIDTH, LENGTH)
    x, run = torch.randn(1, LENGTH, WIDTH), cases.RUN[step]
    assert peak_bytes(lambda: run(ours, x)) < peak_bytes(lambda: run(theirs, x)) / 2


def test_hyperglu_takes_memory_linear_in_length():
    """Twice the frames, twice the operands and gradients; one chunk of scores more."""
    peaks = []
    for frames in (512, 1024, 2048):
        operands, options = cases.hyperglu_operands(frames, 64, width=128)
        peaks.append(
            peak_bytes(lambda: cases.run_hyperglu(operands, options, 64))  # noqa: B023
        )
    first, second = peaks[1] - peaks[0], peaks[2] - peaks[1]
    # Linear: the second step is twice the first; quadratic: four times.
    assert second == pytest.approx(2 * first, rel=0.1)
