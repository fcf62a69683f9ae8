"""Linear layers by oneDNN against float64 and against torch's own."""

import copy
import io
import pathlib

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.linear import Linear
from hyperconformer.ops import linear as module
from hyperconformer.ops.linear import LEAST_WORK, linear, why_not
from hyperconformer.training.results import count_macs
from tests.goldens import relative_error

has_onednn = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)
needs_onednn = pytest.mark.skipif(not has_onednn, reason="torch without oneDNN")

# Rows and widths with enough work for both backward products, too.
ROWS, NARROW, WIDE = (5, 97), 120, 200


@pytest.fixture
def onednn(monkeypatch):
    """As on a processor that MKL does not know; the list of what oneDNN multiplies."""
    monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)
    monkeypatch.setattr(module, "why_not_here", lambda: None)
    calls, product = [], module._onednn

    def listed(x, weight, bias):
        calls.append((*x.shape, len(weight)))
        return product(x, weight, bias)

    monkeypatch.setattr(module, "_onednn", listed)
    return calls


def operands(rows, inner, outer, bias):
    generator = torch.Generator().manual_seed(inner)
    shapes = [(*rows, inner), (outer, inner), (outer,)]
    drawn = [
        torch.randn(shape, generator=generator).requires_grad_() for shape in shapes
    ]
    return [*drawn[:2], drawn[2] if bias else None]


def with_gradients(function, x, weight, bias):
    y = function(x, weight, bias)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    inputs = [t for t in (x, weight, bias) if t is not None]
    return [y, *torch.autograd.grad(y, inputs, gradient.to(y.dtype))]


@needs_onednn
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize(
    "rows, inner, outer",
    [
        (ROWS, NARROW, WIDE),
        (ROWS, WIDE, NARROW),
        ((485,), NARROW, WIDE),
        ((2, 3, 97), 130, 131),
        ((1, 3000), 144, 31),
        ((1, 2), 3000, 1001),
    ],
)
def test_equals_the_product_in_float64(
    onednn, monkeypatch, rows, inner, outer, bias, capability
):
    """As exact as torch's own: twice its error, as sums go in another order."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    single = operands(rows, inner, outer, bias)
    double = [t if t is None else t.detach().double().requires_grad_() for t in single]
    exact = with_gradients(F.linear, *double)
    usual = with_gradients(F.linear, *single)
    assert onednn == []
    got = with_gradients(linear, *single)
    # Forward, tokens, and weights where turning them is worth it.
    assert len(onednn) == (3 if capability == "AVX512" else 2)
    for ours, torchs, true in zip(got, usual, exact):
        assert ours.shape == true.shape
        limit = 2 * relative_error(torchs, true) + 1e-6
        assert relative_error(ours, true) < limit


@needs_onednn
def test_second_derivatives(onednn):
    tensors = operands(ROWS, NARROW, WIDE, True)

    def penalty(function):
        x, weight, bias = tensors
        y = function(x, weight, bias).square().sum()
        gradients = torch.autograd.grad(y, [x, weight, bias], create_graph=True)
        second = sum(g.square().sum() for g in gradients)
        return torch.autograd.grad(second, tensors)

    for ours, torchs in zip(penalty(linear), penalty(F.linear)):
        assert relative_error(ours, torchs) < 1e-5
    assert len(onednn) > 3


@needs_onednn
@pytest.mark.parametrize("name", ["expanded", "overlapping", "every second", "turned"])
def test_weights_and_gradients_of_any_layout(onednn, name):
    x = torch.randn(*ROWS, NARROW, requires_grad=True)
    weight = {
        "expanded": lambda: torch.randn(NARROW).expand(WIDE, -1),
        "overlapping": lambda: torch.randn(400).as_strided((WIDE, NARROW), (1, 1)),
        "every second": lambda: torch.randn(WIDE, 2 * NARROW)[:, ::2],
        "turned": lambda: torch.randn(NARROW, WIDE).t(),
    }[name]()
    weight.requires_grad_()
    turned = x.transpose(0, 1)
    for function in (lambda y: y.sum(), lambda y: y.transpose(0, 1).square().sum()):
        got, expected = [
            torch.autograd.grad(function(f(turned, weight)), [x, weight])
            for f in (linear, F.linear)
        ]
        for ours, torchs in zip(got, expected):
            assert relative_error(ours, torchs) < 1e-5
    assert onednn


@needs_onednn
def test_frozen_parts_cost_nothing(onednn):
    x, weight, bias = operands(ROWS, NARROW, WIDE, True)
    linear(x.detach(), weight, bias).sum().backward()
    assert weight.grad is not None and x.grad is None
    onednn.clear()
    linear(x, weight.detach(), bias).sum().backward()
    assert len(onednn) == 2 and x.grad is not None
    onednn.clear()
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad
    assert len(onednn) == 1


@needs_onednn
def test_left_to_torch(onednn, monkeypatch):
    """Few products, other numbers, autocast, watchers, switches."""
    x, weight, bias = (t.detach() for t in operands(ROWS, NARROW, WIDE, True))
    assert why_not(x, weight, bias) is None
    few = LEAST_WORK // (NARROW * WIDE)
    assert why_not(x.view(-1, NARROW)[: few + 1], weight) is None
    assert "from 4194304" in why_not(x.view(-1, NARROW)[:few], weight)
    assert "float64" in why_not(x.double(), weight.double())
    with torch.autocast("cpu"):
        assert "autocast" in why_not(x, weight)
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert "switched off" in why_not(x, weight)
        linear(x, weight, bias)
    assert count_macs(lambda: linear(x, weight)) == x.numel() * WIDE
    torch.func.vmap(lambda frames: linear(frames, weight))(x)
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "torch")
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert onednn == []


@needs_onednn
@pytest.mark.parametrize("wrong", ["x", "weight", "bias"])
def test_wrong_shapes_are_torchs_errors(onednn, wrong):
    tensors = dict(zip(("x", "weight", "bias"), operands(ROWS, NARROW, WIDE, True)))
    tensors[wrong] = tensors[wrong][..., :-1]
    with pytest.raises(RuntimeError, match="shape|size"):
        linear(**tensors)


@pytest.mark.parametrize(
    "processor, reason",
    [
        ("vendor_id\t: GenuineIntel\n", "Intel"),
        ("vendor_id\t: AuthenticAMD\n", None),
        (None, "processor"),
    ],
)
def test_who_made_the_processor_decides(monkeypatch, processor, reason):
    if not (has_onednn and torch.backends.mkl.is_available()):
        pytest.skip("torch without oneDNN and MKL")
    read = {"/proc/cpuinfo": processor}

    def read_text(path, **_):
        if read[str(path)] is None:
            raise FileNotFoundError(path)
        return read[str(path)]

    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    answer = module.why_not_here.__wrapped__()
    assert answer is None if reason is None else reason in answer


@needs_onednn
def test_the_layer_is_torchs_but_for_the_product(onednn):
    torch.manual_seed(3)
    ours = Linear(NARROW, WIDE)
    torch.manual_seed(3)
    torchs = torch.nn.Linear(NARROW, WIDE)
    assert torch.equal(ours.weight, torchs.weight)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(*ROWS, NARROW)
    assert relative_error(ours(x), torchs(x)) < 1e-6
    assert len(onednn) == 1
    kept = io.BytesIO()
    torch.save(ours, kept)
    kept.seek(0)
    again = torch.load(kept, weights_only=False)
    assert torch.equal(again(x), ours(x))
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))


@needs_onednn
def test_compiled_and_exported_layers_hold_torchs_operations(onednn):
    layer, x = Linear(NARROW, WIDE), torch.randn(*ROWS, NARROW)
    expected = F.linear(x, layer.weight, layer.bias)
    exported = torch.export.export(layer, (x,))
    assert "aten.linear" in str(exported.graph)
    assert relative_error(exported.module()(x), expected) < 1e-6
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert relative_error(compiled(x), expected) < 1e-6
    assert onednn == []
