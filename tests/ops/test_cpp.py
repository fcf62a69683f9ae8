"""Compiling C++ kernels on the machine that runs them."""

import platform
import shutil

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from benchmarks.gpu.operands import random_hypernet
from hyperconformer.model.frontend import ConvolutionFrontEnd
from hyperconformer.nn.dropout import Dropout
from hyperconformer.ops import cpp
from hyperconformer.ops.compiling import TARGETS, built_library, compile_library
from hyperconformer.ops.gated_convolution import gated_convolution
from hyperconformer.ops.hypermixing import Hypernet, hypermixing
from hyperconformer.training.results import count_macs
from tests.goldens import relative_error

CODE = 'extern "C" int answer() { return %d; }\n'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing remembered of earlier attempts."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpp._attempt.cache_clear()
    yield tmp_path / "cache" / "hyperconformer"
    cpp._attempt.cache_clear()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answers.cpp"
    path.write_text(CODE % 42)
    return path


def test_a_library_is_compiled_once_for_each_source(cache, source, monkeypatch):
    assert cpp.load(source).answer() == 42
    (first,) = cache.iterdir()
    monkeypatch.setattr(
        cpp, "compile_library", lambda *_: pytest.fail("compiled again")
    )
    assert cpp.load(source).answer() == 42
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    source.write_text(CODE % 7)
    assert cpp.load(source).answer() == 7
    assert len(list(cache.iterdir())) == 2
    assert first.exists()


@pytest.fixture
def without_compiler(monkeypatch):
    def turn_off():
        monkeypatch.setenv("CXX", "no-such-compiler")
        cpp._attempt.cache_clear()

    return turn_off


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 processor")
@pytest.mark.parametrize(
    "capability, built, runs",
    [
        ("AVX512", ["x86-64-v3", "x86-64-v4"], "x86-64-v4"),
        ("AVX512", ["x86-64-v3"], "x86-64-v3"),
        ("AVX2", ["x86-64-v3", "x86-64-v4"], "x86-64-v3"),
        ("AVX2", ["x86-64-v4"], None),
        ("DEFAULT", ["x86-64-v3", "x86-64-v4"], None),
    ],
)
def test_a_library_of_the_wheel_needs_no_compiler(
    source, monkeypatch, without_compiler, capability, built, runs
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for answer, target in enumerate(TARGETS["x86_64"]):
        if target in built:
            source.write_text(CODE % answer)
            # Code that any processor runs, under the name of this one.
            compile_library(source, built_library(source, target), "x86-64")
    without_compiler()
    if runs is None:
        assert "no-such-compiler" in cpp.unsupported_reason(source)
    else:
        assert cpp.load(source).answer() == TARGETS["x86_64"].index(runs)


def test_a_damaged_library_of_the_wheel_is_compiled_here(source, monkeypatch, caplog):
    monkeypatch.setattr(cpp, "_targets", lambda: ["some-processor"])
    built_library(source, "some-processor").write_bytes(b"")
    assert cpp.load(source).answer() == 42
    assert "some-processor.so cannot be loaded" in caplog.text


def test_openmp_is_that_of_torch(source):
    """A second one would have threads of its own."""
    source.write_text(
        '#include <omp.h>\nextern "C" int answer() { return omp_get_max_threads(); }\n'
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert cpp.load(source).answer() == 3
    finally:
        torch.set_num_threads(threads)


def test_without_a_compiler(cache, source, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert "no-such-compiler" in cpp.unsupported_reason(source)
    assert "no-such-compiler" in cpp.unsupported_reason(source)
    (record,) = caplog.records  # Said once.
    assert "answers.cpp" in record.message and "no-such-compiler" in record.message


def test_what_does_not_compile_leaves_nothing_behind(cache, source):
    source.write_text("int broken(\n")
    with pytest.raises(OSError, match="(?s)answers.cpp.*failed:.*error"):
        cpp.load(source)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(source, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "file" in cpp.unsupported_reason(source)


@pytest.mark.parametrize("name, value", [("CXX", "c++ '"), ("HOME", None)])
def test_a_broken_environment_is_a_reason(source, monkeypatch, name, value):
    """Quotes that do not close; nobody at home."""
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(cpp.pathlib.Path, "home", no_home)
    else:
        monkeypatch.setenv(name, value)
    assert cpp.unsupported_reason(source)


def no_home():
    raise RuntimeError("Could not determine home directory.")


def test_a_damaged_library_is_compiled_again(cache, source):
    cpp.load(source)
    (library,) = cache.iterdir()
    library.unlink()
    library.write_bytes(b"")
    assert cpp.load(source).answer() == 42


def test_every_source_travels_in_the_wheel():
    """setup.py names endings, and folders are packages."""
    sources = {*cpp.HEADERS.rglob("*.cpp"), *cpp.HEADERS.rglob("*.h")}
    assert len(sources) > 3
    assert all((source.parent / "__init__.py").exists() for source in sources)
    setup = (cpp.HEADERS.parents[1] / "setup.py").read_text()
    assert '"": ["*.cpp", "*.h", "py.typed"]' in setup


class Layer(torch.nn.Module):
    """All operators that have kernels, one after another."""

    def __init__(self):
        super().__init__()
        nets = [random_hypernet(2, 8, 8, 16, dtype=torch.float32) for _ in "12"]
        self.nets = [torch.nn.ParameterList(w.detach() for w in net) for net in nets]
        self.nets = torch.nn.ModuleList(self.nets)
        self.conv = torch.nn.Conv1d(8, 8, 5, groups=8)
        self.dropout = Dropout(0.3)
        self.frontend = ConvolutionFrontEnd(
            input_shape=(8, 10, 16),
            num_blocks=1,
            num_layers_per_block=1,
            out_channels=(2,),
            kernel_sizes=(3,),
            strides=(1,),
            residuals=(False,),
            dropout=0.0,
        )

    def forward(self, x):
        x = self.frontend(x).mean(-1)
        y = hypermixing(x, x, x, *(Hypernet(*net) for net in self.nets))
        return self.convolve(y)

    def convolve(self, y):
        y = gated_convolution(y, self.conv.weight, self.conv.bias, left=2)
        return self.dropout.after(torch.nn.SiLU(), y)


def gradients_of(layer, y, x):
    return torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])


@pytest.fixture
def usual_cache(monkeypatch, cache):
    """The libraries of the package are compiled once for all tests."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)


def test_checkpointed_and_packed_activations(usual_cache):
    """What is saved may be made again, or moved and brought back."""
    layer, x = Layer(), torch.randn(3, 60, 16, requires_grad=True)

    def run(function):
        torch.manual_seed(3)
        y = function()
        return gradients_of(layer, y, x)

    expected = run(lambda: layer(x))
    again = run(lambda: checkpoint(layer, x, use_reentrant=False))
    assert all(map(torch.equal, expected, again))
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        assert all(map(torch.equal, expected, run(lambda: layer(x))))


def test_a_gradient_with_its_sign_in_a_flag(usual_cache):
    layer, x = Layer().eval(), torch.randn(2, 60, 16, requires_grad=True)
    y = layer(x)
    flagged = torch._neg_view(torch.randn_like(y))
    assert flagged.is_neg()
    gradients = [
        torch.autograd.grad(y, x, gradient, retain_graph=True)[0]
        for gradient in (flagged, flagged.resolve_neg())
    ]
    assert torch.equal(*gradients)


def test_second_derivatives_are_refused(usual_cache):
    layer, x = Layer().eval(), torch.randn(1, 60, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivatives.*BACKEND=torch has"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


def test_others_that_watch_see_torch(usual_cache, monkeypatch):
    """Counters of operations, functional transforms, forward-mode derivatives."""
    layer, x = Layer().eval(), torch.randn(1, 60, 16)
    counted = count_macs(lambda: layer(x))
    tangent = torch.randn_like(x)
    # HyperMixing in torch's operations has hooks that torch.func.grad does not take.
    gradient = torch.func.grad(lambda x: layer.convolve(x).sum())(x)
    _, slope = torch.func.jvp(layer.convolve, (x,), (tangent,))
    with forward_ad.dual_level():
        dual = layer.convolve(forward_ad.make_dual(x, tangent))
        slope_of_dual = forward_ad.unpack_dual(dual).tangent
    (by_kernels,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "torch")
    assert counted == count_macs(lambda: layer(x)) > 0
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    assert relative_error(by_kernels, expected) < 1e-5
    (expected,) = torch.autograd.grad(layer.convolve(x).sum(), x)
    assert relative_error(gradient, expected) < 1e-5
    # The gradient of a sum along a tangent, and the sum of the slopes.
    along = (expected * tangent).sum()
    for sum_of_slopes in (slope.sum(), slope_of_dual.sum()):
        assert abs(sum_of_slopes - along) < 1e-5 * expected.norm() * tangent.norm()


@pytest.mark.parametrize("turn", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_tensors_without_memory_of_their_own_are_left_to_torch(turn):
    reason = cpp.unsupported_tensors([turn(torch.eye(3))], (torch.float32,))
    assert "neither nested nor sparse" in reason


def test_frozen_weights(usual_cache):
    layer, x = Layer().eval(), torch.randn(2, 60, 16, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).sum(), x)
    layer.requires_grad_(False)
    (got,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(got, expected)
