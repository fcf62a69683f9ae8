"""The feed-forward in blocks is the feed-forward."""

import pytest
import torch
from torch import nn

from hyperconformer import feed_forward
from hyperconformer.dropout import Dropout
from hyperconformer.feed_forward import FeedForward

ACTIVATIONS = [nn.SiLU, nn.GELU]


@pytest.fixture
def small_blocks(monkeypatch):
    """So small that the tests' inputs fill several, the last one in part."""
    monkeypatch.setattr(feed_forward, "LEAST_ROWS", 3)
    monkeypatch.setattr(feed_forward, "block_size", lambda: 1)


def both(module, x, plain):
    """Output and gradients in blocks and by PyTorch's modules, with equal dropout."""
    found = []
    for function in (module, plain):
        x = x.detach().requires_grad_()
        module.zero_grad()
        torch.manual_seed(3)
        y = function(x)
        y.backward(torch.ones_like(y).cumsum(-1))
        found.append([y, x.grad, *(p.grad for p in module.parameters())])
    return zip(*found)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_modules_in_sequence(activation, rate, small_blocks):
    module = FeedForward(6, 10, activation, rate).double()
    for got, wanted in both(module, torch.randn(2, 7, 6).double(), module.ffn):
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation, small_blocks):
    module = FeedForward(3, 5, activation).double()
    x = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


@pytest.mark.parametrize("activation", [lambda: nn.GELU("tanh"), nn.Tanh])
def test_other_activations_are_left_to_pytorch(activation):
    module = FeedForward(6, 10, activation)
    x = torch.randn(2, 6)
    assert torch.equal(module(x), module.ffn(x))


def test_everything_may_be_dropped():
    module = FeedForward(6, 10, dropout=1.0)
    assert torch.equal(module(torch.randn(2, 6)), module.ffn[3].bias.expand(2, 6))


def test_keeps_no_more_than_the_hidden_layer():
    kept = []
    module = FeedForward(8, 32, dropout=0.1)
    x = torch.randn(5, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        module(x)
    fixed = {p.data_ptr() for p in (x, *module.parameters())}
    assert sum(t.numel() for t in kept if t.data_ptr() not in fixed) == 5 * 32


def test_dropout_is_the_modules_own():
    assert isinstance(FeedForward(6, 10).ffn[2], Dropout)
