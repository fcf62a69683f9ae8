"""Our layers in the place of PyTorch's."""

import torch

from hyperconformer.dropout import Dropout
from hyperconformer.integration.replace import replace_layers
from hyperconformer.linear import Linear


def test_replaced_everywhere_and_nowhere_else():
    attention = torch.nn.MultiheadAttention(4, 2, dropout=0.1)
    inner = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Dropout2d(0.2))
    model = torch.nn.ModuleList(
        [torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, bias=False), inner, attention]
    )
    state, parameters = model.state_dict(), list(model.parameters())
    replace_layers(model)
    assert type(model[0]) is type(model[1]) is Linear
    assert type(inner[0]) is Dropout and inner[0].p == 0.2
    assert type(inner[1]) is torch.nn.Dropout2d
    # A Linear that says of itself that it is not to be replaced.
    assert type(attention.out_proj) is not Linear
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert model[1].bias is None and model[0](torch.ones(5, 2)).shape == (5, 3)
