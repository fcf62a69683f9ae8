"""The C++ kernels of HyperMixing against the papers' formula in float64."""

import concurrent.futures

import pytest
import torch

from benchmarks.gpu.operands import random_hypernet, tail_mask
from hyperconformer.ops import cpp
from hyperconformer.ops.hypermixing import (
    cpp_path,
    hypermixing,
    hypermixing_in_chunks,
    hypermixing_packed,
)
from tests.goldens import relative_error

pytestmark = pytest.mark.skipif(
    cpp.unsupported_reason(cpp_path.SOURCE) is not None, reason="no C++ compiler"
)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    """Threads of torch, also more than there are cores."""
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(usual)


def nets_of(heads, width, hidden, mixing, bias=True):
    return [
        random_hypernet(heads, width, hidden, mixing, bias, torch.float32)
        for _ in range(2)
    ]


def run(backend, dtype, tokens, nets, options):
    """Output and all gradients of one path, everything being ``dtype``."""
    tokens = {id(x): x.detach().to(dtype).requires_grad_() for x in tokens}
    cast = {id(net): [net, net.to(dtype)] for net in nets}
    leaves = [w for _, net in cast.values() for w in net if w is not None]
    first, *others = tokens.values()
    read = others[0] if others else first
    codes = options.get("codes")
    options = {**options, "codes": codes if codes is None else codes.to(dtype)}
    pair = [cast[id(net)][1] for net in nets]
    out = hypermixing(first, read, read, *pair, backend=backend, **options)
    generator = torch.Generator().manual_seed(out.numel())
    weight = torch.randn(out.shape, generator=generator).to(out.dtype)
    inputs = [first, *others, *leaves]
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_as_exact_as_torch(tokens, nets, **options):
    """At most twice as far from float64 as torch in float32, in either order.

    How far that is depends on the case: where G S is large, gradients of the first
    hypernetwork lose digits to its rounding, in one order or the other by chance.
    """
    exact = run("reference", torch.float64, tokens, nets, options)
    peers = [
        run(path, torch.float32, tokens, nets, options)
        for path in ("reference", "torch")
    ]
    got = run("cpp", torch.float32, tokens, nets, options)
    assert len(got) == len(exact)
    for ours, truth, *theirs in zip(got, exact, *peers):
        assert ours.shape == truth.shape
        error = relative_error(ours, truth)
        allowed = max(relative_error(peer, truth) for peer in theirs)
        # A handful of roundings, where torch happens to be exact.
        assert error <= 2 * allowed + 1e-6, (tuple(truth.shape), error, allowed)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "nomask"])
@pytest.mark.parametrize("length", [1, 2, 7, 47, 48, 49, 63, 200])
def test_equals_reference(threads, length, masked, bias):
    x = torch.randn(3, length, 36)
    mask = tail_mask(3, length) if masked else None
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    nets = nets_of(2, 18, 18, 31, bias)
    codes = torch.randn(210, 36)
    assert_as_exact_as_torch([x], nets, codes=codes, scale=1.7, **masks)
    assert_as_exact_as_torch([x], [nets[0]] * 2, **masks)


@pytest.mark.parametrize(
    "batch, length, heads, width, hidden, mixing",
    [
        (1, 1000, 8, 18, 18, 72),
        (2, 333, 8, 32, 32, 128),
        (1, 1000, 8, 64, 64, 256),
        (5, 63, 1, 128, 128, 40),
        (2, 70, 3, 5, 9, 1),
        (4, 17, 4, 16, 40, 3),
        (1, 5, 2, 1, 1, 2),
    ],
)
def test_every_shape(threads, batch, length, heads, width, hidden, mixing):
    x = torch.randn(batch, length, heads * width)
    nets = nets_of(heads, width, hidden, mixing)
    assert_as_exact_as_torch([x], nets, codes=torch.randn(length, heads * width))


@pytest.mark.parametrize("coded", [True, False])
def test_hypernetworks_that_read_tokens_of_their_own(threads, coded):
    tokens = [torch.randn(3, 100, 24) for _ in range(2)]
    mask = tail_mask(3, 100)
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    codes = torch.randn(100, 24) if coded else None
    assert_as_exact_as_torch(
        tokens, nets_of(2, 12, 10, 20), codes=codes, scale=0.5, **masks
    )


@pytest.mark.parametrize("scale", [1e-3, 5.0, 40.0])
def test_every_part_of_gelu(scale):
    """From where it is half the line to where it is 0 or the identity."""
    assert_as_exact_as_torch(
        [torch.randn(2, 300, 32)], nets_of(2, 16, 16, 32), scale=scale
    )


def test_what_stands_in_padding_is_never_read(threads):
    nets = nets_of(2, 18, 18, 31)
    mask = tail_mask(3, 100)
    mask[0, 3] = mask[1, 50:70] = True
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    clean = torch.randn(3, 100, 36)
    dirty = clean.masked_fill(mask[..., None], float("nan"))
    expected = run("cpp", torch.float32, [clean], nets, masks)
    got = run("cpp", torch.float32, [dirty], nets, masks)
    assert all(map(torch.equal, expected, got))
    assert (got[0][mask] == 0).all() and (got[1][mask] == 0).all()


@pytest.mark.parametrize("alias", [torch.Tensor.detach, lambda x: x.view_as(x)])
def test_keys_in_the_memory_of_the_values(alias):
    """They get a gradient of their own all the same."""
    nets = nets_of(2, 12, 12, 20)
    gradients = []
    for backend in ("cpp", "torch"):
        torch.manual_seed(7)
        x = torch.randn(2, 60, 24, requires_grad=True)
        keys = alias(x)
        out = hypermixing(x, keys, keys, *nets, backend=backend)
        gradients += torch.autograd.grad(out.square().sum(), x)
    assert relative_error(*gradients) < 1e-5


def test_what_does_not_fit_is_left_to_torch():
    """Which broadcasts or raises, and never reads past the end of memory."""
    nets, x = nets_of(2, 12, 12, 20), torch.randn(3, 30, 24)
    mask = tail_mask(3, 30)[:1]
    for options in (
        {"codes": torch.randn(3, 30, 24)},
        {"codes": torch.randn(30, 1)},
        {"key_padding_mask": mask, "query_padding_mask": mask},
    ):
        expected = hypermixing(x, x, x, *nets, backend="torch", **options)
        assert relative_error(hypermixing(x, x, x, *nets, **options), expected) < 1e-6
        with pytest.raises(ValueError, match="C.. backend of HyperMixing needs"):
            hypermixing(x, x, x, *nets, backend="cpp", **options)
    with pytest.raises(RuntimeError):
        hypermixing(x, x, x, *nets, codes=torch.randn(30, 17))
    empty = x[:0]
    assert hypermixing(empty, empty, empty, *nets).shape == (0, 30, 24)


def test_denormal_gradients_are_zeros(threads):
    # A processor computes with them far slower: 5 times in a model's backward.
    nets = nets_of(4, 12, 20, 24)
    values = torch.randn(3, 200, 48, requires_grad=True)
    out = hypermixing(values, values, values, *nets, backend="cpp")
    out.backward(torch.full_like(out, 1e-39))
    assert not values.grad.any()
    # The caller's own arithmetic keeps them.
    assert (torch.full((1000,), 1e-39) * 2).all()


def test_nan_is_not_lost():
    x = torch.randn(2, 60, 24)
    x[1, 59, 23] = float("nan")
    out = hypermixing(x, x, x, *nets_of(2, 12, 12, 20), backend="cpp")
    assert out[0].isfinite().all() and out[1, :, 12:].isnan().all()


def test_batch_equals_each_utterance_alone(threads):
    """To the bit on one thread: tiles begin with the utterance."""
    nets = nets_of(2, 18, 18, 31)
    x = torch.randn(4, 120, 36)
    whole = hypermixing(x, x, x, *nets, backend="cpp")
    for b in range(4):
        alone = x[b : b + 1]
        out = hypermixing(alone, alone, alone, *nets, backend="cpp")
        assert relative_error(whole[b : b + 1], out) < (2e-6 if threads > 1 else 1e-30)


def test_packed_utterances():
    nets = nets_of(2, 12, 12, 20)
    x, starts = torch.randn(150, 24), torch.tensor([0, 20, 21, 150])
    codes = torch.randn(129, 24)
    got = hypermixing_packed(x, starts, 129, *nets, codes=codes, backend="cpp")
    expected = hypermixing_packed(x, starts, 129, *nets, codes=codes, backend="torch")
    assert relative_error(got, expected) < 2e-6


def test_views_and_expanded_gradients():
    nets = nets_of(2, 12, 12, 20)
    wide = torch.randn(3, 24, 50)
    x = wide.transpose(1, 2).requires_grad_()  # Not contiguous.
    gradients = []
    for backend in ("cpp", "torch"):
        out = hypermixing(x, x, x, *nets, backend=backend)
        gradients += torch.autograd.grad(out.sum(), x)
    assert relative_error(*gradients) < 1e-5


def test_calls_do_not_disturb_each_other():
    """What a call leaves in its scratch memory is nobody's result."""
    nets = nets_of(2, 18, 18, 31)
    tokens = [torch.randn(2, 300, 36), torch.randn(3, 40, 36)]
    expected = [run("cpp", torch.float32, [x], nets, {}) for x in tokens]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = pool.map(
            lambda x: run("cpp", torch.float32, [x], nets, {}), tokens * 20
        )
    for got, wanted in zip(answers, expected * 20, strict=True):
        assert all(map(torch.equal, got, wanted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    nets = nets_of(2, 8, 8, 32)
    x = (3 + 0.1 * torch.randn(1, 30_000, 16)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = hypermixing(x, x, x, *nets, backend="cpp")
    (gradient,) = torch.autograd.grad(out.mean(), x)
    expected = hypermixing(*[x.float()] * 3, *nets, backend="reference")
    assert out.dtype == torch.float32 and gradient.dtype == dtype
    assert relative_error(out, expected) < 1e-3


def test_it_is_what_a_cpu_takes(monkeypatch):
    monkeypatch.delenv("HYPERCONFORMER_BACKEND", raising=False)
    called = []
    usual = cpp_path.hypermixing
    monkeypatch.setattr(
        cpp_path, "hypermixing", lambda *a, **k: called.append(1) or usual(*a, **k)
    )
    nets, x = nets_of(2, 12, 12, 20), torch.randn(2, 30, 24)
    hypermixing(x, x, x, *nets)
    assert called == [1]
    nets64 = [net.to(torch.float64) for net in nets]
    hypermixing(*[x.double()] * 3, *nets64)
    hypermixing(x, x, x[:, :7], *nets)
    assert called == [1]


def test_a_forced_path_that_cannot_run_raises(monkeypatch):
    nets, x = nets_of(2, 12, 12, 20), torch.randn(2, 30, 24)
    nets64 = [net.to(torch.float64) for net in nets]
    with pytest.raises(ValueError, match="computes in float32, got torch.float64"):
        hypermixing(*[x.double()] * 3, *nets64, backend="cpp")
    with pytest.raises(ValueError, match="one tensor, and one mask, as keys and"):
        hypermixing(x, x, x[:, :7], *nets, backend="cpp")
    with pytest.raises(ValueError, match="widths up to 128, got .1, 200, 24."):
        hypermixing(x, x, x, *nets_of(1, 24, 200, 8), backend="cpp")
    with pytest.raises(ValueError, match="needs hypernetworks of one size"):
        other = [nets[0], nets_of(2, 12, 12, 8)[0]]
        hypermixing(x, x, x, *other, backend="cpp")
    with pytest.raises(ValueError, match="C.. backend of HyperMixing in chunks does"):
        hypermixing_in_chunks(x, *nets, backend="cpp")
    monkeypatch.setattr(cpp, "unsupported_reason", lambda source: "has no compiler")
    with pytest.raises(ValueError, match="HyperMixing has no compiler"):
        hypermixing(x, x, x, *nets, backend="cpp")
    assert hypermixing(x, x, x, *nets) is not None
