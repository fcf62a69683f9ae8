"""The HyperMixing operator: every path against the papers' formula."""

import concurrent.futures
import itertools

import pytest
import torch

from benchmarks.gpu.operands import random_hypernet, tail_mask
from hyperconformer.ops.hypermixing import Hypernet, hypermixing, reference, torch_path
from tests.goldens import relative_error


def random_tokens(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def run(backend, tokens, nets, **options):
    """Output, and gradients of every tensor, of one path."""
    out = hypermixing(*tokens, *nets, backend=backend, **options)
    inputs = [*dict.fromkeys([*tokens, *itertools.chain(*nets)])]
    inputs = [tensor for tensor in inputs if tensor is not None]
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, torch.autograd.grad((out * weight).sum(), inputs)


def assert_paths_agree(tokens, nets, tolerance=1e-10, **options):
    expected, expected_gradients = run("reference", tokens, nets, **options)
    got, gradients = run("torch", tokens, nets, **options)
    assert relative_error(got, expected) < tolerance
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        assert gradient.shape == expected_gradient.shape
        assert relative_error(gradient, expected_gradient) < tolerance


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("masked", [True, False], ids=["mask", "nomask"])
@pytest.mark.parametrize("length", [1, 2, 8, 9, 10, 11, 23, 63])
def test_self_mixing_equals_reference(length, masked, bias):
    x = random_tokens(3, length, 12)
    nets = [random_hypernet(2, 6, 5, 30, bias) for _ in range(2)]
    mask = tail_mask(3, length) if masked else None
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    codes = torch.randn(70, 12, dtype=torch.float64)
    assert_paths_agree([x, x, x], nets, codes=codes, scale=1.7, **masks)
    assert_paths_agree([x, x, x], [nets[0], nets[0]], **masks)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("lengths", [(1, 40), (40, 1), (31, 24)])
def test_cross_mixing_equals_reference(lengths, bias):
    num_keys, num_queries = lengths
    tokens = [random_tokens(3, n, 12) for n in (num_keys, num_keys, num_queries)]
    nets = [random_hypernet(3, 4, 4, 8, bias) for _ in range(2)]
    options = {
        "codes": torch.randn(40, 12, dtype=torch.float64),
        "key_padding_mask": tail_mask(3, num_keys),
        "query_padding_mask": tail_mask(3, num_queries),
    }
    assert_paths_agree(tokens, nets, **options)


@pytest.mark.parametrize("heads", range(1, 9))
def test_every_number_of_heads(heads):
    x = random_tokens(2, 50, 6 * heads)
    assert_paths_agree([x, x, x], [random_hypernet(heads, 6, 6, 9)] * 2)


@pytest.mark.parametrize("width, heads", [(144, 8), (256, 8), (15, 3)])
@pytest.mark.parametrize("length", [16, 18, 20, 333])
def test_model_sizes_in_float32(width, heads, length):
    x = random_tokens(2, length, width, dtype=torch.float32)
    d = width // heads
    nets = [random_hypernet(heads, d, d, 4 * d, dtype=torch.float32) for _ in "12"]
    assert_paths_agree([x, x, x], nets, tolerance=1e-4)


def test_order_switches_where_the_multiply_adds_cross():
    f, g = torch.empty(1, 32, 32), torch.empty(1, 128, 32)
    assert torch_path.usual_order_is_cheaper(2 * 18, f, g)
    assert not torch_path.usual_order_is_cheaper(2 * 19, f, g)


@pytest.mark.parametrize("num_keys, num_queries", [(3, 2), (13, 17)])
def test_gradcheck(num_keys, num_queries):
    tokens = [random_tokens(2, n, 4) for n in (num_keys, num_keys, num_queries)]
    nets = [random_hypernet(2, 2, 2, 3) for _ in range(2)]
    codes = torch.randn(17, 4, dtype=torch.float64)

    def function(values, keys, queries, *weights):
        return hypermixing(
            values,
            keys,
            queries,
            Hypernet(*weights[:4]),
            Hypernet(*weights[4:]),
            codes=codes,
            scale=0.5,
            key_padding_mask=tail_mask(2, num_keys),
            query_padding_mask=tail_mask(2, num_queries),
        )

    assert torch.autograd.gradcheck(function, [*tokens, *nets[0], *nets[1]])


@pytest.mark.parametrize("own_tokens", [True, False])
def test_gradcheck_of_self_mixing(own_tokens):
    """With hypernetworks that read the values, or tokens of their own."""
    tokens = [random_tokens(2, 13, 4) for _ in range(1 + own_tokens)]
    nets = [random_hypernet(2, 2, hidden, 3) for hidden in (2, 1)]
    codes = torch.randn(13, 4, dtype=torch.float64)
    mask = tail_mask(2, 13)

    def function(*tensors):
        values, read = tensors[0], tensors[own_tokens]
        weights = tensors[1 + own_tokens :]
        return hypermixing(
            values,
            read,
            read,
            Hypernet(*weights[:4]),
            Hypernet(*weights[4:]),
            codes=codes,
            scale=0.5,
            key_padding_mask=mask,
            query_padding_mask=mask,
        )

    assert torch.autograd.gradcheck(function, [*tokens, *nets[0], *nets[1]])


def test_calls_do_not_disturb_each_other():
    """What a call leaves in its scratch memory is nobody's result."""
    nets = [random_hypernet(2, 6, 6, 12) for _ in range(2)]
    long, short = random_tokens(2, 60, 12), random_tokens(3, 40, 12)
    expected = [run("reference", [x] * 3, nets) for x in (long, short)]
    outputs = [hypermixing(x, x, x, *nets, backend="torch") for x in (long, short)]
    with torch.inference_mode(), torch.device("meta"):  # Scratch memory is neither.
        tokens = torch.randn(2, 90, 12, dtype=torch.float64, device="cpu")
        hypermixing(*[tokens] * 3, *nets, backend="torch")
    answers = [run("torch", [x] * 3, nets) for x in (long, short)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers += pool.map(lambda x: run("torch", [x] * 3, nets), [long, short] * 20)
    for (out, gradients), (want, wanted) in zip(answers, expected * 21, strict=True):
        assert relative_error(out, want) < 1e-10
        assert all(relative_error(a, b) < 1e-10 for a, b in zip(gradients, wanted))
    for out, (want, _) in zip(outputs, expected):
        assert relative_error(out, want) < 1e-10


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("length", [5, 40])
def test_what_stands_in_padding_is_never_read(backend, length):
    nets = [random_hypernet(2, 6, 6, 12) for _ in range(2)]
    mask = tail_mask(3, length)
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    clean = random_tokens(3, length, 12)
    dirty = clean.detach().masked_fill(mask[..., None], float("nan")).requires_grad_()
    out, gradients = run(backend, [clean] * 3, nets, **masks)
    dirty_out, dirty_gradients = run(backend, [dirty] * 3, nets, **masks)
    assert torch.equal(out, dirty_out)
    assert all(map(torch.equal, gradients, dirty_gradients))
    assert (out[mask] == 0).all()
    assert (gradients[0][mask] == 0).all()


def test_batch_equals_each_utterance_alone():
    nets = [random_hypernet(2, 6, 6, 12) for _ in range(2)]
    mask = tail_mask(3, 40)
    x = random_tokens(3, 40, 12)
    out = hypermixing(x, x, x, *nets, key_padding_mask=mask, query_padding_mask=mask)
    for b in range(3):
        alone = x[b : b + 1, : 40 - b]
        expected = hypermixing(alone, alone, alone, *nets)
        assert relative_error(out[b : b + 1, : 40 - b], expected) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    nets = [random_hypernet(2, 8, 8, 32, dtype=torch.float32) for _ in range(2)]
    x = (3 + 0.1 * torch.randn(1, 30_000, 16)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = hypermixing(x, x, x, *nets, backend="torch")
    weights = [weight for net in nets for weight in net]
    gradients = torch.autograd.grad(out.mean(), [x, *weights])
    expected = hypermixing(*[x.float()] * 3, *nets, backend="reference")
    assert expected.abs().max() > torch.finfo(torch.float16).max
    assert out.dtype == torch.float32
    assert gradients[0].dtype == dtype
    assert relative_error(out, expected) < 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_backward_keeps_little():
    """At most 4 (T, D) tensors; the input alone, in fact."""
    x = random_tokens(1, 3000, 256, dtype=torch.float32)
    nets = [random_hypernet(8, 32, 32, 128, dtype=torch.float32) for _ in range(2)]
    codes = torch.randn(3000, 256)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hypermixing(x, x, x, *nets, codes=codes)
    kept.pop(codes.data_ptr())
    assert sum(kept.values()) < 1.5 * x.numel() * x.element_size()


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        nets = [random_hypernet(2, 6, 6, 12, dtype=torch.float32) for _ in range(2)]
        weights = [torch.nn.Parameter(w.detach()) for net in nets for w in net]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, x, mask):
        first, second = Hypernet(*self.weights[:4]), Hypernet(*self.weights[4:])
        masks = {"key_padding_mask": mask, "query_padding_mask": mask}
        return hypermixing(x, x, x, first, second, **masks)


@pytest.mark.integration
def test_compiled_whole():
    module = Module()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    for length in (31, 40):
        x = random_tokens(3, length, 12, dtype=torch.float32)
        mask = tail_mask(3, length)
        expected, got = module(x, mask), compiled(x, mask)
        assert relative_error(got, expected) < 1e-5
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
        assert relative_error(gradient, expected_gradient) < 1e-4


def test_exported_for_any_length():
    module = Module()
    x, mask = torch.randn(3, 31, 12), tail_mask(3, 31)
    length = torch.export.Dim("length", min=2, max=4000)
    shapes = ({1: length}, {1: length})
    exported = torch.export.export(module, (x, mask), dynamic_shapes=shapes).module()
    for length in (5, 31, 600):
        x, mask = torch.randn(3, length, 12), tail_mask(3, length)
        assert relative_error(exported(x, mask), module(x, mask)) < 1e-5


def test_forced_backend(monkeypatch):
    x = random_tokens(1, 40, 12)
    nets = [random_hypernet(2, 6, 6, 12)] * 2
    called = []
    monkeypatch.setattr(reference, "hypermixing", lambda *_, **__: called.append(1))
    hypermixing(x, x, x, *nets, backend="reference")
    assert called == [1]
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "reference")
    hypermixing(x, x, x, *nets)
    assert called == [1, 1]
    assert hypermixing(x, x, x, *nets, backend="torch") is not None
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "cuda")
    with pytest.raises(
        ValueError, match="'cuda'; known: reference, torch, cpp, triton"
    ):
        hypermixing(x, x, x, *nets)
    with pytest.raises(
        ValueError, match="'fast'; known: reference, torch, cpp, triton"
    ):
        hypermixing(x, x, x, *nets, backend="fast")


def test_what_does_not_fit_is_refused():
    x, net = random_tokens(2, 9, 12), random_hypernet(2, 6, 6, 12)
    with pytest.raises(ValueError, match="one shape"):
        hypermixing(x, x[:, :5], x, net, net)
    with pytest.raises(ValueError, match="batch and width"):
        hypermixing(x, x, x[:1], net, net)
    with pytest.raises(ValueError, match="at least one token"):
        hypermixing(x, x, x[:, :0], net, net)
    with pytest.raises(ValueError, match="2 heads of width 6"):
        hypermixing(*[x[..., :10]] * 3, net, net)
    with pytest.raises(ValueError, match="9 tokens need as many position codes, got 8"):
        hypermixing(x, x, x, net, net, codes=torch.zeros(8, 12))
