"""Padding is cleared alike by the fast way and by PyTorch's."""

import pytest
import torch

from hyperconformer.masks import clear_padding


@pytest.mark.parametrize("shape", [(3, 7), (3, 7, 4), (3, 7, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_clear_padding(shape, dtype):
    mask = torch.arange(7) >= torch.tensor([[7], [4], [1]])
    x = torch.randn(shape).to(dtype)
    x[mask] = float("nan")
    x.requires_grad_()
    y = clear_padding(x, mask)
    assert torch.equal(y[~mask], x[~mask]) and not y[mask].any()
    upstream = torch.randn(shape).to(dtype)
    upstream[mask] = float("inf")
    y.backward(upstream)
    assert torch.equal(x.grad[~mask], upstream[~mask]) and not x.grad[mask].any()


def test_no_padding():
    x = torch.randn(2, 3)
    assert clear_padding(x, None) is x
