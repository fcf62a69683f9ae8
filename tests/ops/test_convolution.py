"""The convolution that the compiler does not look into, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.ops.convolution import conv_nd

CASES = {
    "depthwise": (
        (2, 6, 1, 11),
        (6, 1, 1, 3),
        {"stride": (1, 1), "padding": (0, 1), "dilation": (1, 1), "groups": 6},
    ),
    "strided": (
        (2, 3, 9, 8),
        (4, 3, 3, 2),
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    ),
    "one dimension": (
        (2, 4, 9),
        (6, 2, 3),
        {"stride": [2], "padding": [1], "dilation": [1], "groups": 2},
    ),
}


def random_tensors(shape, weight_shape, bias=True):
    shapes = [shape, weight_shape, weight_shape[:1]][: 2 + bias]
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.integration
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch_compiled_or_not(case, bias):
    shape, weight_shape, options = CASES[case]
    tensors = random_tensors(shape, weight_shape, bias)
    stock = F.conv1d if len(shape) == 3 else F.conv2d
    compiled = torch.compile(
        lambda *tensors: conv_nd(*tensors, **options),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = stock(*tensors, **options)
    gradients = torch.autograd.grad(expected.square().sum(), tensors)
    for function in (lambda *tensors: conv_nd(*tensors, **options), compiled):
        got = function(*tensors)
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
        for mine, its in zip(
            torch.autograd.grad(got.square().sum(), tensors), gradients
        ):
            assert torch.allclose(mine, its, rtol=0, atol=1e-12)


def test_autocast_rounds_it_compiled_or_not():
    shape, weight_shape, options = CASES["strided"]
    tensors = [tensor.float() for tensor in random_tensors(shape, weight_shape)]

    def function(*tensors):
        return conv_nd(*tensors, **options)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.conv2d(*tensors, **options)
        outputs = function(*tensors), compiled(*tensors)
    for got in outputs:
        assert got.dtype == expected.dtype == torch.bfloat16
        # The bias is added before or after the last rounding, of 2^-9.
        error = (got.float() - expected.float()).abs().max()
        assert error <= 2**-8 * expected.float().abs().max()


@pytest.mark.parametrize("case", CASES)
def test_the_operator_keeps_the_rules_of_operators(case):
    """Its fake form, its gradient and its layouts, as PyTorch itself checks them."""
    shape, weight_shape, options = CASES[case]
    x, weight = random_tensors(shape, weight_shape, bias=False)
    lists = [list(options[name]) for name in ("stride", "padding", "dilation")]
    arguments = x, weight, *lists, options.get("groups", 1)
    torch.library.opcheck(torch.ops.hyperconformer.convolution.default, arguments)
    # A channels-last input, as the layers have it.
    if len(shape) == 4:
        x = x.detach().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        arguments = x.requires_grad_(), *arguments[1:]
        torch.library.opcheck(torch.ops.hyperconformer.convolution.default, arguments)
