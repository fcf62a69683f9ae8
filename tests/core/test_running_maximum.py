"""The largest so far."""

import pytest
import torch
from torch import nn

from hyperconformer.core.running_maximum import running_maximum


class Along(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        return running_maximum(x, self.dim)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_exported_program_says_what_cummax_says(dim, dynamic):
    x = torch.randn(7, 8, 9)
    shapes = ({dim: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(Along(dim), (x,), dynamic_shapes=shapes)
    operations = {str(node.target) for node in program.graph.nodes}
    assert "aten.cummax.default" not in operations
    assert torch.equal(program.module()(x), x.cummax(dim).values)
