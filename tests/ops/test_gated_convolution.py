"""The paths of the gated convolution against the reference in float64."""

import pytest
import torch

from benchmarks.gpu.operands import tail_mask
from hyperconformer.ops import cpp
from hyperconformer.ops.gated_convolution import (
    cpp_path,
    gated_convolution,
    reference,
)
from tests.goldens import relative_error
from tests.ops.test_hypermixing_cpp import threads  # noqa: F401

needs_compiler = pytest.mark.skipif(
    cpp.unsupported_reason(cpp_path.SOURCE) is not None, reason="no C++ compiler"
)
PATHS = ["torch", pytest.param("cpp", marks=needs_compiler)]


def operands(batch, length, channels, taps, bias, dtype=torch.float64):
    tensors = [
        torch.randn(batch, length, 2 * channels, dtype=dtype),
        torch.randn(channels, 1, taps, dtype=dtype),
        torch.randn(channels, dtype=dtype) if bias else None,
    ]
    return [t if t is None else t.requires_grad_() for t in tensors]


def with_gradients(function, tensors, *rest):
    y = function(*tensors, *rest)
    inputs = [t for t in tensors if t is not None]
    generator = torch.Generator().manual_seed(y.numel())
    weight = torch.randn(y.shape, generator=generator).to(y.dtype)
    return [y, *torch.autograd.grad((y * weight).sum(), inputs)]


def call(x, weight, bias, left, mask):
    return gated_convolution(x, weight, bias, left=left, padding_mask=mask)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "nomask"])
@pytest.mark.parametrize(
    "batch, length, channels, taps, left, bias",
    [
        (2, 40, 20, 7, 3, True),
        (3, 131, 33, 15, 14, False),
        (1, 5, 16, 31, 15, True),
        (2, 129, 8, 1, 0, True),
        (1, 64, 48, 4, 0, False),
    ],
)
def test_equals_the_reference(
    threads,  # noqa: F811
    monkeypatch,
    path,
    batch,
    length,
    channels,
    taps,
    left,
    bias,
    masked,
):
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", path)
    dtype = torch.float64 if path == "torch" else torch.float32
    tensors = operands(batch, length, channels, taps, bias, dtype)
    exact = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    mask = tail_mask(batch, length) if masked else None
    expected = with_gradients(reference.gated_convolution, exact, left, mask)
    got = with_gradients(call, tensors, left, mask)
    # The same operations in float32 in another order: a few roundings of sums over
    # the taps, and over all frames for the parameters.
    single = with_gradients(
        reference.gated_convolution,
        [t if t is None else t.detach().float().requires_grad_() for t in exact],
        left,
        mask,
    )
    for ours, truth, peer in zip(got, expected, single, strict=True):
        assert ours.dtype == dtype
        allowed = 1e-12
        if path == "cpp":
            allowed = 2 * relative_error(peer, truth) + 1e-6
        assert relative_error(ours, truth) <= allowed


@pytest.mark.parametrize("path", PATHS)
def test_padding_reaches_nothing(monkeypatch, path):
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", path)
    x, weight, bias = operands(3, 50, 20, 7, True, torch.float32)
    mask = tail_mask(3, 50)
    mask[0, 9] = True
    other = x.detach().masked_fill(mask[..., None], 7.0).requires_grad_()
    clean = with_gradients(call, [x, weight, bias], 3, mask)
    got = with_gradients(call, [other, weight, bias], 3, mask)
    assert all(map(torch.equal, clean, got))
    assert (got[1][mask] == 0).all()
    dirty = x.detach().masked_fill(mask[..., None], float("nan"))
    assert torch.equal(call(dirty, weight, bias, 3, mask), clean[0])


def test_what_does_not_fit_is_left_to_torch():
    """Which broadcasts or raises, and never reads past the end of memory."""
    x, weight, bias = operands(3, 30, 8, 5, True, torch.float32)
    mask = tail_mask(3, 30)
    one = call(x, weight, bias, 2, mask[:1])
    assert relative_error(one, call(x, weight, bias, 2, mask[:1].expand(3, -1))) < 1e-6
    with pytest.raises(RuntimeError):
        gated_convolution(x, torch.randn(400, 1, 7), left=3)
    assert call(x[:0], weight, bias, 2, None).shape == (0, 30, 8)


def test_gradcheck():
    tensors = operands(2, 9, 3, 5, True)
    mask = tail_mask(2, 9)
    assert torch.autograd.gradcheck(lambda *t: call(*t, 1, mask), tensors)


@needs_compiler
def test_a_cpu_takes_its_kernels(monkeypatch):
    monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)
    called = []
    usual = cpp_path.gated_convolution
    monkeypatch.setattr(
        cpp_path, "gated_convolution", lambda *a: called.append(1) or usual(*a)
    )
    call(*operands(1, 9, 4, 3, True, torch.float32), 1, None)
    assert called == [1]
    call(*operands(1, 9, 4, 3, True, torch.float64), 1, None)
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "torch")
    call(*operands(1, 9, 4, 3, True, torch.float32), 1, None)
    assert called == [1]


@needs_compiler
def test_compiled_and_exported_without_the_kernels():
    """torch.compile fuses what it sees; what it exports runs anywhere."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv1d(4, 4, 3, groups=4)

        def forward(self, x):
            return call(x, self.conv.weight, self.conv.bias, 1, None)

    module, x = Module(), torch.randn(2, 9, 8)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    exported = torch.export.export(module, (x,)).module()
    expected = module(x)
    for other in (compiled, exported):
        assert relative_error(other(x), expected) < 1e-5
