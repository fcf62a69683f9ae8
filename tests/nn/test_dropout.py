"""Cheap dropout is dropout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.nn.convolution import ConvolutionModule
from hyperconformer.nn.dropout import Dropout, activate
from hyperconformer.nn.feed_forward import FeedForward
from hyperconformer.ops import cpp
from hyperconformer.ops.dropout import cpp_path
from tests.goldens import relative_error
from tests.ops.test_hypermixing_cpp import threads  # noqa: F401

needs_compiler = pytest.mark.skipif(
    cpp.unsupported_reason(cpp_path.SOURCE) is not None, reason="no C++ compiler"
)
PATHS = ["torch", pytest.param("cpp", marks=needs_compiler)]
ACTIVATIONS = [(nn.SiLU(), F.silu), (nn.GELU(), F.gelu), (nn.ReLU(), F.relu)]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Both ways to draw; float32, which is what the kernels take."""
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", request.param)
    return request.param


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_scale_and_gradient(path, p):
    x = torch.randn(400, 501, requires_grad=True)
    y = Dropout(p)(x)
    kept = y != 0
    # Five standard deviations of a binomial share.
    assert abs((~kept).double().mean() - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.allclose(y[kept], x[kept] / (1 - p), rtol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)


def test_elements_are_independent(path):
    """Neighbours, which share a draw, and lanes and blocks agree as chance has it."""
    kept = Dropout(0.5)(torch.ones(1 << 20)) != 0
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 128, 4096, 8192):
        same = (kept[lag:] == kept[:-lag]).double().mean()
        assert abs(same - 0.5) < 5 * 0.5 / (1 << 20) ** 0.5
    # Places within a block, and whole blocks.
    for share in (kept.view(-1, 4096).double().mean(dim) for dim in (0, 1)):
        assert (share - 0.5).abs().max() < 6 * 0.5 / (kept.numel() / len(share)) ** 0.5


def test_calls_are_independent(path):
    layer, x = Dropout(0.5), torch.ones(1 << 18)
    first, second = layer(x) != 0, layer(x) != 0
    same = (first == second).double().mean()
    assert abs(same - 0.5) < 5 * 0.5 / (1 << 18) ** 0.5


@pytest.mark.parametrize("activation, function", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 17, 4096, 5001])
def test_after_an_activation(path, threads, activation, function, count):  # noqa: F811
    """One operator; elements at the ends of blocks and vectors too."""
    layer = Dropout(0.3)
    x = (4 * torch.randn(count)).requires_grad_()
    torch.manual_seed(5)
    kept = layer(torch.ones(count)) != 0
    torch.manual_seed(5)
    y = layer.after(activation, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().requires_grad_()
    rounded = round(0.3 * 65536) / 65536
    expected = function(exact) * kept / (1 - rounded)
    (exact_gradient,) = torch.autograd.grad(expected.sum(), exact)
    # A few roundings of the largest.
    assert relative_error(y, expected) < 1e-6
    assert relative_error(gradient, exact_gradient) < 1e-6


@pytest.mark.parametrize("activation, function", ACTIVATIONS)
def test_activation_alone(path, activation, function):
    """In evaluation, and without a dropout; no random number is drawn."""
    x = torch.linspace(-30, 30, 4321).requires_grad_()
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(function(exact).sum(), exact)
    state = torch.get_rng_state()
    for y in (activate(activation, x), Dropout(0.3).eval().after(activation, x)):
        assert relative_error(y, function(exact)) < 1e-6
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert relative_error(gradient, expected) < 1e-6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU()])
def test_nan_and_infinity(path, activation):
    y = activate(activation, torch.tensor([float("nan"), float("inf"), 1e30, -1e30]))
    assert y[0].isnan() and y[2] == 1e30 and abs(y[3]) < 1e-30
    # With AVX-512, torch's own GELU, which is oneDNN's, makes NaN of infinity.
    if path == "cpp":
        assert y[1] == float("inf")


def test_what_it_does_not_know_is_left_to_torch():
    """Another formula, or a class of somebody's."""
    x = torch.randn(100)
    for activation in (nn.GELU("tanh"), nn.SiLU(inplace=True), nn.Tanh()):
        expected = activation(x.clone())
        assert torch.equal(activate(activation, x.clone()), expected)


def test_nothing_to_do_is_nothing_done(path):
    x = torch.randn(5)
    assert Dropout(0.0)(x) is x


def test_a_dropped_nan_stays(path):
    """It is a sign of a mistake, and PyTorch's dropout keeps it."""
    assert Dropout(0.5)(torch.full((100,), float("nan"))).isnan().all()


def test_who_listens_or_is_replaced_is_called():
    called = []
    layer = FeedForward(4, 8, dropout=0.1)
    layer.ffn[1].register_forward_hook(lambda *_: called.append("activation"))
    layer.ffn[2].register_forward_hook(lambda *_: called.append("dropout"))
    layer(torch.randn(2, 3, 4))
    assert called == ["activation", "dropout"]
    layer.ffn[2] = nn.Identity()
    layer(torch.randn(2, 3, 4))
    convolution = ConvolutionModule(4, kernel_size=3)
    convolution.bottleneck[1].register_forward_hook(lambda *_: called.append("gate"))
    x = torch.randn(2, 9, 4)
    heard = convolution(x)
    assert called[-1] == "gate"
    plain = ConvolutionModule(4, kernel_size=3)
    plain.load_state_dict(convolution.state_dict())
    assert relative_error(heard, plain(x)) < 1e-5


@pytest.mark.parametrize("count", [1, 31, 32, 33, 4096, 4097, 50_001])
@pytest.mark.parametrize("compiler", ["c++", "c++ -mno-avx512f"])
def test_all_paths_and_processors_draw_the_same(monkeypatch, count, compiler):
    """Vectors of 8 and of 16 numbers; a dtype that the kernels leave to torch."""
    monkeypatch.setenv("CXX", compiler)
    cpp._attempt.cache_clear(), cpp_path._library.cache_clear()
    x, outputs = torch.ones(count), []
    for path, dtype in [("torch", None), ("cpp", None), ("cpp", torch.bfloat16)]:
        if path == "cpp" and cpp.unsupported_reason(cpp_path.SOURCE) is not None:
            pytest.skip("no C++ compiler")
        monkeypatch.setenv("HYPERCONFORMER_BACKEND", path)
        torch.manual_seed(5)
        outputs.append(Dropout(0.3)(x.to(dtype)) != 0)
    cpp._attempt.cache_clear(), cpp_path._library.cache_clear()
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@needs_compiler
def test_draws_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "cpp")
    usual, outputs = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        torch.manual_seed(5)
        outputs.append(Dropout(0.5)(torch.ones(50_000)))
    torch.set_num_threads(usual)
    assert torch.equal(*outputs)


def test_does_nothing_in_evaluation_and_repeats_with_the_seed(path):
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
