"""The Triton kernels of HyperMixing, under Triton's interpreter and compiled.

The checks ``check_*`` run in a second process; :mod:`tests.ops.interpreted` says why.
"""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

import triton  # noqa: E402
from triton import language as tl  # noqa: E402

from benchmarks import kernel_resources  # noqa: E402
from benchmarks.gpu.errors import mixing_errors, round_net, run_mixing  # noqa: E402
from benchmarks.gpu.operands import random_hypernet, tail_mask  # noqa: E402
from hyperconformer.core.masks import ChunkRule  # noqa: E402
from hyperconformer.mixers.hypermixing import sinusoidal_codes, sinusoidal_frequencies  # noqa: E402
from hyperconformer.ops.hypermixing import (  # noqa: E402
    chunked,
    hypermixing,
    hypermixing_in_chunks,
    hypermixing_packed,
    triton_kernels,
    triton_path,
)
from tests.goldens import relative_error  # noqa: E402
from tests.ops.interpreted import (  # noqa: E402, F401
    MARKERS,
    prepare_once_a_launch,
    round_to_nearest,
    run_checks,
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(params=["spans", "one"])
def form(request, monkeypatch):
    """Three kernels over spans, or one program for a head of an utterance."""
    tokens = {"spans": 0, "one": 10_000}[request.param]
    monkeypatch.setattr(triton_path, "TOKENS_PER_PROGRAM", tokens)
    return request.param


@pytest.mark.integration
@pytest.mark.parametrize("marker", MARKERS)
def test_checks_under_the_interpreter(marker):
    run_checks(__file__, marker)


def random_case(batch, length, width, heads, dtype, bias=True):
    """Tokens and weights that ``dtype`` holds exactly, and everything optional."""
    d = width // heads
    nets = [random_hypernet(heads, d, d, 2 * d, bias, F32) for _ in "12"]
    x = torch.randn(batch, length, width).to(dtype)
    mask = tail_mask(batch, length)
    options = {
        "codes": torch.randn(length + 3, width).to(dtype).float(),
        "scale": 1.5,
        "key_padding_mask": mask,
        "query_padding_mask": mask,
    }
    return x, [round_net(net, dtype, F32) for net in nets], options


def assert_as_exact_as_torch(*arguments):
    """At most twice as far from float64 as torch in the same precision."""
    for error, allowed, _ in mixing_errors(*arguments):
        assert error <= allowed


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "batch, length, width, heads, dtype",
    [
        (1, 1, 64, 4, F32),
        (1, 63, 144, 8, F32),
        (1, 1000, 16, 1, BF16),
        (1, 20, 72, 4, F16),
        pytest.param(2, 63, 144, 8, F16, marks=slow),
        pytest.param(1, 1000, 36, 1, F32, marks=slow),
        pytest.param(2, 63, 256, 4, F32, marks=slow),
        pytest.param(1, 33, 256, 2, F32, marks=slow),
        pytest.param(2, 63, 64, 4, BF16, marks=slow),
        pytest.param(1, 70, 128, 4, BF16, marks=slow),
    ],
)
def check_against_float64(form, batch, length, width, heads, dtype):
    assert_as_exact_as_torch(*random_case(batch, length, width, heads, dtype))


def check_sinusoids_equal_their_table(form):
    width, length = 18, 6
    x, nets, options = random_case(1, length, width, 1, F32)
    options["codes"] = sinusoidal_codes(length, width)
    table = run_mixing("triton", F32, x, nets, options)
    options["frequencies"] = sinusoidal_frequencies(width)
    for ours, theirs in zip(run_mixing("triton", F32, x, nets, options), table):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def check_sinusoids_of_large_angles():
    angles = torch.cat([torch.zeros(1), 10 ** torch.linspace(-6, 4.69, 4095)])
    got = torch.empty(4096, 2)
    sinusoid_kernel[(1,)](angles, got, BLOCK=4096)
    expected = torch.stack([angles.double().sin(), angles.double().cos()], 1)
    assert (got - expected).abs().max() < 2e-7


@triton.jit
def sinusoid_kernel(angles, out, BLOCK: tl.constexpr):
    channel = tl.arange(0, 2)
    t = tl.arange(0, BLOCK)
    angle = tl.load(angles + t)[:, None] + tl.zeros((BLOCK, 2), tl.float32)
    at = t[:, None] * 2 + channel[None, :]
    tl.store(out + at, triton_kernels._sinusoid(angle, channel))


def check_tied_weights_and_nothing_optional(form):
    x, nets, _ = random_case(2, 20, 24, 1, F32, bias=False)
    assert_as_exact_as_torch(x, [nets[0], nets[0]], {})


@pytest.mark.parametrize("num_keys, num_queries", [(5, 20), (20, 5)])
def check_other_queries(num_keys, num_queries):
    x, nets, options = random_case(2, num_keys, 32, 2, F32)
    queries = torch.randn(2, num_queries, 32)
    options["codes"] = torch.randn(20, 32)
    options["query_padding_mask"] = tail_mask(2, num_queries)
    assert_as_exact_as_torch(x, nets, options, queries)


def check_hidden_layer_of_another_width(form):
    nets = [random_hypernet(2, 6, hidden, 9, dtype=F32) for hidden in (130, 5)]
    x = torch.randn(2, 20, 12)
    with pytest.raises(ValueError, match="at most 128, got 130"):
        hypermixing(x, x, x, *nets, backend="triton")
    x = torch.randn(1, 33, 32)
    for widths in ((100, 24), (20, 50)):
        nets = [random_hypernet(2, 16, hidden, 32, dtype=F32) for hidden in widths]
        assert_as_exact_as_torch(x, nets, {})


@pytest.mark.parametrize("rule", [ChunkRule(5, 1), ChunkRule(20)], ids=str)
def check_chunks_against_torch(rule):
    """Spans that no tile fills, that several tiles fill, and two streams apart."""
    x, nets, options = random_case(2, 43, 24, 2, F32)
    x.requires_grad_()
    decay = torch.tensor([0.9, 0.99], requires_grad=True)
    options = {
        "chunk": rule,
        "codes": options["codes"],
        "padding_mask": options["key_padding_mask"],
        "decay": decay,
        "normalize": True,
    }
    results = []
    for backend in ("triton", "torch"):
        out, past = hypermixing_in_chunks(x, *nets, **options, backend=backend)
        assert past is None
        inputs = [x, decay, *nets[0], *nets[1]]
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for got, expected in zip(*results):
        assert relative_error(got, expected) < 1e-5

    options = {"chunk": rule, "codes": torch.randn(2, 45, 24)}
    start = chunked.init_past(nets[0], 2, chunk=rule)
    got, expected = (
        hypermixing_in_chunks(x, *nets, **options, past=start, backend=backend)
        for backend in ("triton", "torch")
    )
    assert relative_error(got[0], expected[0]) < 1e-5
    assert relative_error(got[1], expected[1]) < 1e-5


def check_packed_utterances(form):
    """Of one frame, and of more than a tile has."""
    lengths = [1, 40, 7]
    x, nets, options = random_case(1, sum(lengths), 24, 2, F32)
    x = x[0].requires_grad_()
    starts = torch.tensor([0, *lengths]).cumsum(0)
    results = []
    for backend in ("triton", "torch"):
        options = {"codes": options["codes"], "scale": 0.5, "backend": backend}
        out = hypermixing_packed(x, starts, 40, *nets, **options)
        inputs = [x, *nets[0], *nets[1]]
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for got, expected in zip(*results):
        assert relative_error(got, expected) < 1e-5


def check_what_stands_in_padding_is_never_read(form):
    x, nets, options = random_case(3, 5, 24, 2, F32)
    mask = options["key_padding_mask"]
    clean = run_mixing("triton", F32, x, nets, options)
    x = x.masked_fill(mask[..., None], float("nan"))
    dirty = run_mixing("triton", F32, x, nets, options)
    assert all(map(torch.equal, clean, dirty))
    assert (clean[0][mask] == 0).all()
    assert (clean[1][mask] == 0).all()


def check_strided_tokens_and_masks(form):
    x, nets, options = random_case(2, 5, 24, 2, F32)
    expected = run_mixing("triton", F32, x, nets, options)
    for key in ("key_padding_mask", "query_padding_mask"):
        options[key] = options[key].T.contiguous().T
    options["codes"] = options["codes"].T.contiguous().T
    x = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert all(map(torch.equal, expected, run_mixing("triton", F32, x, nets, options)))

    # As convolutions leave them: of one utterance, rows are no copy of that.
    x = torch.randn(1, 24, 7).transpose(1, 2)
    with torch.no_grad():
        got = hypermixing(x, x, x, *nets, backend="triton")
        copy = x.contiguous()
        assert torch.equal(got, hypermixing(copy, copy, copy, *nets, backend="triton"))
        packed = x[0], torch.tensor([0, 7]), 7
        assert torch.equal(got[0], hypermixing_packed(*packed, *nets, backend="triton"))


def check_dtypes_of_output_and_gradients(form):
    for dtype, out_dtype in ((F32, F32), (BF16, BF16), (F16, F32)):
        x, nets, options = random_case(1, 3, 16, 1, dtype)
        x.requires_grad_()
        with torch.autocast("cpu", dtype=BF16):
            out = hypermixing(x, x, x, *nets, backend="triton", **options)
        gradients = torch.autograd.grad(out.sum(), [x, *nets[0]])
        assert out.dtype == out_dtype
        assert [g.dtype for g in gradients] == [dtype] + [F32] * 4


def check_float16_does_not_overflow(form):
    nets = [random_hypernet(1, 16, 16, 32, dtype=F32) for _ in "12"]
    x = (300 + torch.randn(1, 400, 16)).to(F16).requires_grad_()
    out = hypermixing(x, x, x, *nets, backend="triton")
    expected = hypermixing(*[x.float()] * 3, *nets, backend="reference")
    assert expected.abs().max() > torch.finfo(F16).max
    assert (out - expected).abs().max() < 1e-3 * expected.abs().max()


@slow  # four operators, each traced several ways
def check_operators_by_the_rules_of_torch():
    x, nets, options = random_case(1, 3, 12, 2, F32)
    x = x[0].requires_grad_()
    layer, first = (
        torch.cat([w.detach(), b.detach()[..., None]], -1).requires_grad_()
        for w, b in (nets[0][:2], nets[0][2:])
    )
    places = options["codes"], 1.5, torch.zeros(3, dtype=torch.uint8), None, 1, 3, 16
    operators, check = torch.ops.hyperconformer, torch.library.opcheck
    sums = operators.hypermixing_reduce(x, layer, True, *places)
    sums = sums.detach().requires_grad_()
    check(operators.hypermixing_reduce, (x, layer, True, *places))
    arguments = sums, first, first.detach().clone(), True, True, torch.float64
    mixture = operators.hypermixing_generate(*arguments).detach()[None]
    check(operators.hypermixing_generate, arguments)
    check(operators.hypermixing_expand, (x, layer, mixture.requires_grad_(), *places))
    query_layer = layer.detach().clone().requires_grad_()
    for keeps_sums in (True, False):
        inputs = [x, layer, query_layer, first, arguments[2]]
        if not keeps_sums:
            inputs = [t.detach() for t in inputs]
        rest = True, True, keeps_sums, *places[:-1]
        check(operators.hypermixing_mix, (*inputs, *rest))


def check_a_graph_made_without_gradients():
    """As an exported model is: the sums that it does not keep are made again."""
    _, nets, _ = random_case(1, 1, 12, 2, F32)
    x = torch.randn(1, 5, 12)

    class Mix(torch.nn.Module):
        def forward(self, x):
            return hypermixing(x, x, x, *nets, backend="triton")

    with torch.no_grad():
        exported = torch.export.export(Mix(), (x,)).module()
    x.requires_grad_()
    got, expected = (
        torch.autograd.grad(module(x).square().sum(), x)[0]
        for module in (exported, Mix())
    )
    assert relative_error(got, expected) < 1e-6


def check_one_program_where_there_are_enough(monkeypatch):
    """Which form runs, and that the sums are written for backward alone."""
    called = []
    for name in ("_mix", "_reduce"):
        operator = getattr(triton_path, name)

        def listed(*arguments, name=name, operator=operator):
            result = operator(*arguments)
            called.append((name, len(result[1]) > 0 if name == "_mix" else None))
            return result

        monkeypatch.setattr(triton_path, name, listed)
    _, nets, _ = random_case(1, 1, 12, 2, F32)

    def form_of(batch, length, nets=nets, width=12):
        called.clear()
        x = torch.randn(batch, length, width)
        hypermixing(x, x, x, *nets, backend="triton")
        return called[0]

    assert form_of(1, 32) == ("_mix", True)
    assert form_of(1, 33) == ("_reduce", None)
    assert form_of(2, 33) == ("_mix", True)
    with torch.no_grad():
        assert form_of(1, 32) == ("_mix", False)
    wide = [random_hypernet(2, 65, 8, 16, dtype=F32) for _ in "12"]
    assert form_of(1, 2, wide, 130) == ("_reduce", None)


@slow
def check_compiled_whole(form):
    _, nets, _ = random_case(1, 1, 12, 2, F32)

    def mix(x, mask):
        options = {"key_padding_mask": mask, "query_padding_mask": mask}
        return hypermixing(x, x, x, *nets, backend="triton", **options)

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (7, 9):
        x, mask = torch.randn(2, length, 12, requires_grad=True), tail_mask(2, length)
        expected, got = mix(x, mask), compiled(x, mask)
        assert torch.equal(got, expected)
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
        assert torch.equal(gradient, expected_gradient)


def check_what_the_kernels_cannot_take():
    x, nets, _ = random_case(1, 5, 12, 2, F32)
    with pytest.raises(ValueError, match="one tensor as values and keys"):
        hypermixing(x, x.clone(), x, *nets, backend="triton")
    with pytest.raises(ValueError, match="got torch.float64 and torch.float64"):
        hypermixing(*[x.double()] * 3, *nets, backend="triton")
    wide, wide_nets, _ = random_case(1, 2, 129, 1, F32)
    with pytest.raises(ValueError, match="at most 128, got 129"):
        hypermixing(*[wide] * 3, *wide_nets, backend="triton")


def test_a_forced_path_that_cannot_run_says_why():
    x, nets, _ = random_case(1, 5, 12, 2, F32)
    with pytest.raises(ValueError, match="HyperMixing needs a CUDA device, got .* cpu"):
        hypermixing(x, x, x, *nets, backend="triton")


@pytest.mark.integration
def test_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from hyperconformer.ops.hypermixing import Hypernet, hypermixing\n"
        "net = Hypernet(torch.randn(2, 4, 4), None, torch.randn(2, 6, 4), None)\n"
        "x = torch.randn(1, 5, 8)\n"
        "hypermixing(x, x, x, net, net)\n"
        "try:\n"
        "    hypermixing(x, x, x, net, net, backend='triton')\n"
        "except ValueError as error:\n"
        "    assert 'needs the package triton' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# The commonest width and dtype, and in turn what needs most registers.
IN_CI = {(90, 32, BF16, name) for name in kernel_resources.KERNELS}
IN_CI |= {(80, 64, F32, "mix")}
IN_CI |= {(80, 18, F32, "reduce_backward"), (80, 18, F16, "expand_backward")}
IN_CI |= {(90, 18, BF16, "hyperglu_forward"), (90, 18, BF16, "hyperglu_backward_mixes")}


@pytest.mark.integration
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in IN_CI else slow)
        for case in kernel_resources.every_case()
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_nothing_spills(case):
    capability, head_width, dtype, name = case
    resources = kernel_resources.compile_kernel(name, dtype, head_width, capability)
    print(kernel_resources.row(case, resources))
    assert resources.stack == 0
    assert 0 < resources.registers <= 255
    assert resources.shared <= kernel_resources.SHARED_MEMORY[capability]


@pytest.mark.parametrize("dtype", kernel_resources.DTYPES)
@pytest.mark.parametrize("head_width", [18, 32, 64])
@pytest.mark.parametrize(
    "batch, length", [(8, 1000), (32, 1000), (32, 1500), (8, 3000), (1, 10_000)]
)
def test_few_bytes_beside_the_tokens(batch, length, head_width, dtype):
    """At most 1.15 times two reads and one write."""
    moved = kernel_resources.moved_bytes(batch, length, 8, head_width, dtype)
    assert sum(moved.values()) <= 1.15 * moved["floor"]
