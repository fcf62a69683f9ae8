"""The paths of the convolution block against the reference in float64."""

import pytest
import torch

from hyperconformer.ops import cpp
from hyperconformer.ops.convolution_block import (
    Geometry,
    convolution_block,
    cpp_path,
    reference,
    torch_path,
)
from tests.goldens import relative_error
from tests.ops.test_hypermixing_cpp import threads  # noqa: F401

needs_compiler = pytest.mark.skipif(
    cpp.unsupported_reason(cpp_path.SOURCE) is not None, reason="no C++ compiler"
)


def geometry_of(taps, stride, reflects, bin_taps):
    span = (taps - 1) // 2 if reflects else max(taps - stride[0], 0)
    return Geometry(stride, span, (bin_taps - 1) // 2, reflects, 1e-5, 0.01)


def operands(shape, kernel, geometry, bias=True):
    x, weight = torch.randn(shape), torch.randn(kernel)
    affine = geometry.output_shape(x, weight)[2:]
    rest = torch.randn(kernel[3]) if bias else None, torch.randn(affine)
    tensors = x, weight, *rest, torch.randn(affine)
    return [t if t is None else t.requires_grad_() for t in tensors]


def with_gradients(function, tensors, lengths, geometry):
    x, *parameters = tensors
    y = function(x, lengths, *parameters, geometry)
    # What stands past an end means nothing.
    ends = -(-lengths // geometry.stride[0])
    padding = torch.arange(y.shape[1]) >= ends[:, None]
    y = y.masked_fill(padding[..., None, None], 0.0)
    generator = torch.Generator().manual_seed(y.numel())
    factors = torch.randn(y.shape, generator=generator).to(y.dtype)
    inputs = [t for t in tensors if t is not None and t.requires_grad]
    return [y, *torch.autograd.grad((y * factors).sum(), inputs)]


def to(tensors, dtype):
    return [t if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]


REFLECTING = pytest.mark.parametrize(
    "reflects", [True, False], ids=["reflecting", "causal"]
)
SHAPES = pytest.mark.parametrize(
    "shape, kernel, stride, lengths, bias",
    [
        ((3, 161, 40, 1), (3, 3, 1, 16), (2, 2), [161, 140, 2], True),
        ((2, 90, 10, 16), (3, 3, 16, 32), (2, 2), [90, 77], True),
        ((2, 33, 9, 3), (5, 3, 3, 5), (1, 2), [33, 32], False),
        ((1, 100, 7, 2), (9, 5, 2, 37), (1, 1), [100], True),
        ((2, 9, 6, 3), (4, 7, 3, 4), (2, 1), [9, 0], True),
        ((2, 16, 12, 4), (1, 1, 4, 8), (2, 3), [16, 1], True),
        ((1, 1, 5, 1), (1, 3, 1, 2), (4, 1), [1], False),
        ((4, 200, 6, 2), (3, 3, 2, 3), (3, 2), [200, 199, 198, 5], True),
    ],
)


@REFLECTING
@SHAPES
def test_the_torch_path_equals_the_reference(
    shape, kernel, stride, lengths, bias, reflects
):
    if reflects and kernel[0] % 2 == 0:
        pytest.skip("an even kernel does not reflect")
    geometry = geometry_of(kernel[0], stride, reflects, kernel[1])
    tensors = to(operands(shape, kernel, geometry, bias), torch.float64)
    lengths = torch.tensor(lengths)
    expected = with_gradients(reference.convolution_block, tensors, lengths, geometry)
    got = with_gradients(torch_path.convolution_block, tensors, lengths, geometry)
    for ours, truth in zip(got, expected, strict=True):
        assert relative_error(ours, truth) <= 1e-12


@needs_compiler
@REFLECTING
@SHAPES
def test_kernels_equal_the_reference(
    threads,  # noqa: F811
    shape,
    kernel,
    stride,
    lengths,
    bias,
    reflects,
):
    if reflects and kernel[0] % 2 == 0:
        pytest.skip("an even kernel does not reflect")
    geometry = geometry_of(kernel[0], stride, reflects, kernel[1])
    lengths = torch.tensor(lengths)
    tensors = operands(shape, kernel, geometry, bias)
    whole = reference.convolution_block
    exact = with_gradients(whole, to(tensors, torch.float64), lengths, geometry)
    single = with_gradients(whole, tensors, lengths, geometry)
    got = with_gradients(convolution_block, tensors, lengths, geometry)
    for ours, truth, peer in zip(got, exact, single, strict=True):
        # The same operations in another order: a few roundings of their sums.
        assert relative_error(ours, truth) <= 2 * relative_error(peer, truth) + 1e-6


@pytest.mark.parametrize(
    "path", [torch_path, pytest.param(cpp_path, marks=needs_compiler)]
)
@REFLECTING
def test_padding_reaches_nothing(reflects, path):
    geometry, lengths = geometry_of(3, (2, 2), reflects, 3), torch.tensor([40, 21, 34])
    x, *parameters = operands((3, 40, 8, 2), (3, 3, 2, 4), geometry)
    mask = torch.arange(40) >= lengths[:, None]
    dirty = x.detach().masked_fill(mask[..., None, None], float("nan")).requires_grad_()
    function = path.convolution_block
    clean = with_gradients(function, [x, *parameters], lengths, geometry)
    got = with_gradients(function, [dirty, *parameters], lengths, geometry)
    assert all(map(torch.equal, clean, got))
    assert (got[1][mask] == 0).all()


@needs_compiler
def test_gradients_that_nobody_needs():
    geometry, lengths = geometry_of(3, (2, 2), True, 3), torch.tensor([40, 30])
    tensors = operands((2, 40, 8, 2), (3, 3, 2, 4), geometry)
    _, _, *expected = with_gradients(convolution_block, tensors, lengths, geometry)
    tensors[0] = tensors[0].detach()
    _, *got = with_gradients(convolution_block, tensors, lengths, geometry)
    assert all(map(torch.equal, expected, got))
    with torch.no_grad():
        y = convolution_block(tensors[0], lengths, *tensors[1:], geometry)
    assert not y.requires_grad


@needs_compiler
def test_what_does_not_fit_is_not_taken(monkeypatch):
    """So that nothing is read or written past the end of memory."""
    geometry, lengths = geometry_of(3, (1, 1), True, 3), torch.tensor([20, 9])
    tensors = operands((2, 20, 8, 2), (3, 3, 2, 4), geometry)
    x, weight, bias, gain, shift = (t.detach() for t in tensors)
    arguments = x, lengths, weight, bias, gain, shift, geometry

    def changed(**others):
        names = "x", "lengths", "weight", "bias", "gain", "shift", "geometry"
        return cpp_path.unsupported_reason(
            *(others.get(n, a) for n, a in zip(names, arguments))
        )

    assert changed() is None
    assert changed(x=x[..., :1]) is not None
    assert changed(x=x.double()) is not None
    narrow = {"x": x[:, :, :1], "gain": gain[:1], "shift": shift[:1]}
    assert changed(**narrow) is not None
    assert changed(geometry=geometry._replace(bin_pad=0), **narrow) is not None
    assert changed(lengths=torch.tensor([21, 9])) is not None
    assert changed(lengths=torch.tensor([20, 1])) is not None
    assert changed(lengths=torch.tensor([20])) is not None
    assert changed(lengths=lengths.int()) is not None
    assert changed(bias=bias[:1]) is not None
    assert changed(gain=gain[:1]) is not None
    assert changed(shift=shift[:, :1]) is not None
    for taps in (2, 5):
        assert changed(weight=torch.randn(taps, 3, 2, 4)) is not None
    causal = geometry_of(9, (1, 1), False, 3)
    assert changed(weight=torch.randn(9, 3, 2, 4), geometry=causal) is None
    negative = torch.tensor([20, -1])
    assert (
        changed(lengths=negative, geometry=geometry_of(3, (1, 1), False, 3)) is not None
    )
    causal = geometry_of(10, (1, 1), False, 3)
    assert changed(weight=torch.randn(10, 3, 2, 4), geometry=causal) is not None
    with torch.inference_mode():
        inferred = x.clone(), lengths.clone()
    assert changed(x=inferred[0]) is not None
    assert changed(lengths=inferred[1]) is not None
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "torch")
    by_torch = convolution_block(*arguments)
    assert torch.equal(by_torch, torch_path.convolution_block(*arguments))


@needs_compiler
def test_two_runs_are_equal(threads):  # noqa: F811
    geometry, lengths = geometry_of(3, (2, 2), True, 3), torch.tensor([300, 280, 7])
    tensors = operands((3, 300, 20, 4), (3, 3, 4, 16), geometry)
    runs = [
        with_gradients(convolution_block, tensors, lengths, geometry) for _ in range(3)
    ]
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0]))
