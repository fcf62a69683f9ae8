"""The convolution of feature maps is PyTorch's, gradients included."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer import convolution
from hyperconformer.convolution import convolve_maps


@pytest.mark.parametrize("block_size", [1, 1 << 17])
@pytest.mark.parametrize("kernel, stride", [((3, 3), (2, 2)), ((2, 5), (1, 3))])
def test_equals_conv2d(kernel, stride, block_size, monkeypatch):
    monkeypatch.setattr(convolution, "block_size", lambda: block_size)
    x = torch.randn(2, 9, 11, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.double, requires_grad=True)
    bias = torch.randn(4, dtype=torch.double, requires_grad=True)
    got = convolve_maps(x, weight, bias, stride)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride).permute(0, 2, 3, 1)
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(got)
    gradients = [
        torch.autograd.grad(y, (x, weight, bias), upstream) for y in (got, wanted)
    ]
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_gradcheck_without_a_bias():
    x = torch.randn(1, 5, 4, 2, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 2, 3, 3, dtype=torch.double, requires_grad=True)
    torch.autograd.gradcheck(lambda *a: convolve_maps(*a, stride=(2, 1)), (x, weight))


def test_dilation_and_groups_are_left_to_pytorch():
    x, weight = torch.randn(1, 9, 9, 4), torch.randn(4, 2, 3, 3)
    got = convolve_maps(x, weight, dilation=(2, 2), groups=2)
    wanted = F.conv2d(x.permute(0, 3, 1, 2), weight, dilation=2, groups=2)
    assert torch.equal(got, wanted.permute(0, 2, 3, 1))
