"""Cheap dropout is dropout."""

import pytest
import torch

from hyperconformer.dropout import Dropout, replace_dropout


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_scale_and_gradient(p):
    x = torch.randn(400, 501, dtype=torch.float64, requires_grad=True)
    y = Dropout(p)(x)
    kept = y != 0
    # Five standard deviations of a binomial share.
    assert abs((~kept).double().mean() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.allclose(y[kept], x[kept] / (1 - p), rtol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)


def test_elements_are_independent():
    """Neighbours, which share a 64-bit draw, agree as often as chance has it."""
    kept = Dropout(0.5)(torch.ones(1 << 20)) != 0
    for lag in (1, 2, 3, 4, 5):
        same = (kept[lag:] == kept[:-lag]).double().mean()
        assert abs(same - 0.5) < 5 * 0.5 / (1 << 20) ** 0.5


def test_does_nothing_in_evaluation_and_repeats_with_the_seed():
    layer, x = Dropout(0.3), torch.randn(7, 11)
    assert torch.equal(layer.eval()(x), x)
    layer.train()
    torch.manual_seed(5)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.manual_seed(5)
    assert torch.equal(first, layer(x))


def test_extreme_rates():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(5, 5))


def test_replaced_everywhere_and_nowhere_else():
    inner = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Dropout2d(0.2))
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), inner])
    names = list(model.state_dict())
    replace_dropout(model)
    assert type(inner[0]) is Dropout and inner[0].p == 0.2
    assert type(inner[1]) is torch.nn.Dropout2d
    assert list(model.state_dict()) == names
