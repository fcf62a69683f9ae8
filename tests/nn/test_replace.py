"""Our layers in the place of PyTorch's."""

import torch

from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.linear import Linear
from hyperconformer.nn.replace import replace_layers


def test_replaced_everywhere_and_nowhere_else():
    attention = torch.nn.MultiheadAttention(4, 2, dropout=0.1)
    inner = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Dropout2d(0.2))
    first, second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2, bias=False)
    model = torch.nn.ModuleList([first, second, inner, attention, first])
    state, parameters = model.state_dict(), list(model.parameters())
    replace_layers(model)
    assert type(first) is type(second) is Linear
    assert type(inner[0]) is Dropout and inner[0].p == 0.2
    assert type(inner[1]) is torch.nn.Dropout2d
    # A Linear that says of itself that it is not to be replaced.
    assert type(attention.out_proj) is not Linear
    assert model[0] is model[4]
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    assert second.bias is None and first(torch.ones(5, 2)).shape == (5, 3)


def test_what_a_layer_holds_stays_its_own():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3)).eval()
    other, called = torch.nn.Linear(2, 3).eval(), []
    other.register_forward_hook(lambda *_: called.append(True))
    model = torch.nn.ModuleList([layer, other])
    x = torch.randn(4, 2)
    expected = layer(x), other(x)
    replace_layers(model)
    assert not layer.training and not other.training
    assert all(map(torch.equal, expected, (layer(x), other(x))))
    assert called == [True, True]
