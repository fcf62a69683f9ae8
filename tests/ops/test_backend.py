"""Which path of an operator runs."""

import pytest
import torch

from hyperconformer.ops import backend


class OnGpu:
    """Stands for a tensor on a GPU, of which only the device is asked."""

    device = torch.device("cuda", 0)


def choose(forced, tokens, reason=None, **cpp):
    return backend.choose_backend("sum", forced, tokens, lambda: reason, **cpp)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of any compute capability, as far as the choice is concerned."""

    def of(*capability):
        monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(backend, "_TRITON_IS_INSTALLED", True)
        monkeypatch.setattr(torch.version, "cuda", "12.4")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        return OnGpu()

    return of


def test_left_to_itself_it_takes_kernels_where_they_are_proven(gpu):
    assert choose(None, torch.zeros(1)) == "torch"
    assert choose(None, gpu(9, 0)) == "triton"
    assert choose(None, gpu(9, 0), "is too wide") == "torch"
    assert choose(None, gpu(8, 6)) == "torch"
    assert choose("triton", gpu(8, 6)) == "triton"
    assert choose("torch", gpu(9, 0)) == "torch"


def test_a_forced_path_that_cannot_run_raises(gpu, monkeypatch):
    with pytest.raises(ValueError, match="backend of sum is too wide"):
        choose("triton", gpu(9, 0), "is too wide")
    with pytest.raises(ValueError, match="needs compute capability 8.0, got 7.5"):
        choose("triton", gpu(7, 5))
    with pytest.raises(ValueError, match="needs a CUDA device, got tensors on cpu"):
        choose("triton", torch.zeros(1))
    monkeypatch.setattr(backend, "_TRITON_IS_INSTALLED", False)
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "triton")
    with pytest.raises(ValueError, match="needs the package triton"):
        choose(None, torch.zeros(1))


def test_kernels_for_a_cpu(gpu, monkeypatch):
    monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)
    x = torch.zeros(1)
    assert choose(None, x, cpp_reason=lambda: None) == "cpp"
    assert choose(None, x, cpp_reason=lambda: "is too wide") == "torch"
    assert choose("torch", x, cpp_reason=lambda: None) == "torch"
    with pytest.raises(ValueError, match="C.. backend of sum is too wide"):
        choose("cpp", x, cpp_reason=lambda: "is too wide")
    with pytest.raises(ValueError, match="C.. backend of sum does not exist"):
        choose("cpp", x)
    assert choose(None, gpu(8, 6), cpp_reason=lambda: None) == "torch"
