"""Linear layers by oneDNN against float64 and against torch's own."""

import copy
import io
import math
import pathlib

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.nn.linear import Linear
from hyperconformer.ops import linear as module
from hyperconformer.ops.linear import LEAST_WORK, linear, unsupported_reason
from hyperconformer.training.results import count_macs, kept_bytes
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
    monkeypatch.setattr(module, "unsupported_machine", lambda: None)
    calls, product = [], module._product

    def listed(x, weight, bias):
        calls.append((*x.shape, len(weight)))
        return product(x, weight, bias)

    monkeypatch.setattr(module, "_product", listed)
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
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    single = operands(rows, inner, outer, bias)
    double = [t if t is None else t.detach().double().requires_grad_() for t in single]
    exact = with_gradients(F.linear, *double)
    got = with_gradients(linear, *single)
    # Forward, tokens, and weights where turning them is worth it.
    assert len(onednn) == (3 if capability == "AVX512" else 2)
    numbers = math.prod(rows)
    for ours, true, summed in zip(got, exact, (inner, outer, numbers, numbers)):
        assert ours.shape == true.shape
        # The roundings of n additions of random numbers, over the largest sum.
        limit = torch.finfo(torch.float32).eps * math.sqrt(summed)
        assert relative_error(ours, true) < limit


@needs_onednn
@pytest.mark.parametrize("narrow, wide", [(NARROW, WIDE), (WIDE, NARROW)])
@pytest.mark.parametrize("capability, products", [("AVX2", 2), ("AVX512", 3)])
def test_few_numbers_of_rows(onednn, monkeypatch, narrow, wide, capability, products):
    """oneDNN writes and keeps machine code for each."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    counts = range(400, 800)
    for count in counts:
        x, weight, bias = operands((count,), narrow, wide, True)
        linear(x, weight, bias).sum().backward()
    assert len(onednn) == products * len(counts)
    # An octave of each, and no more.
    assert len(set(onednn)) <= products * (module.ROWS_OF_AN_OCTAVE + 1)


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


LAYOUTS = {
    "expanded": lambda n, m: torch.randn(m).expand(n, -1),
    "one number": lambda n, m: torch.tensor(2.0).expand(n, m),
    "overlapping": lambda n, m: torch.randn(n + m).as_strided((n, m), (1, 1)),
    "every second": lambda n, m: torch.randn(n, 2 * m)[:, ::2],
    "turned": lambda n, m: torch.randn(m, n).t(),
}


@needs_onednn
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_of_any_layout(onednn, layout):
    frames, length = ROWS
    turned = torch.randn(length, frames, NARROW).transpose(0, 1)
    tensors = [
        [turned, layout(WIDE, NARROW), layout(1, WIDE)[0]],
        [layout(frames * length, NARROW), torch.randn(WIDE, NARROW), None],
    ]
    for given in tensors:
        inputs = [t.requires_grad_() for t in given if t is not None]
        y = linear(*given)
        expected = F.linear(*given)
        assert relative_error(y, expected) < 1e-5
        gradients = torch.randn_like(y), torch.ones(()).expand_as(y)
        for gradient in gradients:
            got, wanted = (
                torch.autograd.grad(out, inputs, gradient, retain_graph=True)
                for out in (y, expected)
            )
            for ours, torchs in zip(got, wanted):
                assert relative_error(ours, torchs) < 1e-5
    assert onednn


@needs_onednn
def test_frozen_parts_cost_nothing(onednn, monkeypatch):
    """No product, and no memory until backward."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    x, weight, bias = operands(ROWS, NARROW, WIDE, True)
    for inputs, products in (
        ((x.detach(), weight, bias), 2),
        ((x, weight.detach(), bias), 2),
        ((x.detach(), weight.detach(), bias), 1),
    ):
        onednn.clear()
        kept = kept_bytes(lambda inputs=inputs: linear(*inputs))
        assert kept == kept_bytes(lambda inputs=inputs: F.linear(*inputs))
        linear(*inputs).sum().backward()
        assert len(onednn) == products + 1
    onednn.clear()
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad
    assert len(onednn) == 1


@needs_onednn
def test_gradients_in_batches(onednn):
    x, weight, bias = operands(ROWS, NARROW, WIDE, True)
    batch = torch.randn(3, *ROWS, WIDE)
    got, expected = (
        torch.autograd.grad(
            f(x, weight, bias), (x, weight, bias), batch, is_grads_batched=True
        )
        for f in (linear, F.linear)
    )
    for ours, torchs in zip(got, expected):
        assert relative_error(ours, torchs) < 1e-5


@needs_onednn
def test_left_to_torch(onednn, monkeypatch):
    """Few products, other numbers, autocast, watchers, switches."""
    x, weight, bias = (t.detach() for t in operands(ROWS, NARROW, WIDE, True))
    assert unsupported_reason(x, weight, bias) is None
    few = LEAST_WORK // (NARROW * WIDE)
    assert unsupported_reason(x.view(-1, NARROW)[: few + 1], weight) is None
    assert "from 4194304" in unsupported_reason(x.view(-1, NARROW)[:few], weight)
    assert "float64" in unsupported_reason(x.double(), weight.double())
    with torch.autocast("cpu"):
        assert "autocast" in unsupported_reason(x, weight)
        assert linear(x, weight, bias).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert "switched off" in unsupported_reason(x, weight)
        linear(x, weight, bias)
    assert count_macs(lambda: linear(x, weight)) == x.numel() * WIDE
    torch.func.vmap(lambda frames: linear(frames, weight))(x)
    for other in (x.to_sparse(), torch.nested.nested_tensor([x[0], x[1, :50]])):
        assert "sparse" in unsupported_reason(other, weight)
    assert "sparse" in unsupported_reason(x, weight.to_sparse_csr())
    wide = torch.randn(LEAST_WORK // WIDE)
    assert "shapes" in unsupported_reason(wide, torch.randn(WIDE, len(wide)))
    assert "shapes" in unsupported_reason(x, weight[0])
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
    answer = module.unsupported_machine.__wrapped__()
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
