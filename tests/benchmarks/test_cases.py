"""What the benchmarks compare computes the same."""

import pytest
import torch

from benchmarks.cases import dropout_operator
from hyperconformer.ops import cpp
from hyperconformer.ops.dropout import cpp_path


@pytest.mark.skipif(
    cpp.unsupported_reason(cpp_path.SOURCE) is not None, reason="no C++ compiler"
)
@pytest.mark.parametrize("activation", cpp_path.ACTIVATIONS)
def test_dropout_as_an_operator(activation):
    x = torch.randn(70, 90, requires_grad=True)
    results = []
    for function in (cpp_path.dropout, dropout_operator()):
        y = function(x, 7, 30_000, 1.8, activation)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    assert all(map(torch.equal, *results))
