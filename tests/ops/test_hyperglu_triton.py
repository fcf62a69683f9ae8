"""The Triton kernels of HyperGLU, under Triton's interpreter and compiled.

The checks ``check_*`` run in a second process; :mod:`tests.ops.interpreted` says why.
"""

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu.errors import hyperglu_errors, round_case, run_hyperglu  # noqa: E402
from benchmarks.gpu.operands import leaves, make_case  # noqa: E402
from hyperconformer.mixers.hyperglu import HyperGLUMixer  # noqa: E402
from hyperconformer.ops.hyperglu import hyperglu, triton_path  # noqa: E402
from tests.goldens import relative_error  # noqa: E402
from tests.ops.interpreted import (  # noqa: E402, F401
    MARKERS,
    prepare_once_a_launch,
    round_to_nearest,
    run_checks,
)

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
slow = pytest.mark.slow


@pytest.mark.integration
@pytest.mark.parametrize("marker", MARKERS)
def test_checks_under_the_interpreter(marker):
    run_checks(__file__, marker)


def assert_as_exact_as_torch(case, dtype, **options):
    """At most twice as far from float64 as torch in the same precision."""
    for error, allowed, _ in hyperglu_errors(case, dtype, **options):
        assert error <= allowed


@pytest.mark.parametrize(
    "dtype, norm, options",
    [
        # Three tiles, a window of two, widths and ranks that fill none.
        (F32, "out_scale", {"frames": 37, "block_size": 21, "sizes": (1, 1, 18, 24)}),
        # A window longer than the utterance; then several utterances and heads.
        (
            BF16,
            "none",
            {
                "kind": "relu",
                "frames": 18,
                "block_size": 50,
                "mix2": False,
                "sizes": (1, 1, 16, 5),
            },
        ),
        (F16, "l2", {"frames": 5, "block_size": 4, "mix1": False}),
        pytest.param(F32, "l2", {"frames": 1, "block_size": 30}, marks=slow),
        pytest.param(F32, "none", {"block_size": 1, "diag": False}, marks=slow),
        pytest.param(F32, "out_scale", {"kind": "relu", "shortcut": False}, marks=slow),
        pytest.param(F32, "none", {"mix1": False, "mix2": False}, marks=slow),
        pytest.param(
            F32,
            "out_scale",
            {"frames": 100, "block_size": 64, "sizes": (1, 2, 16, 32)},
            marks=slow,
        ),
        pytest.param(
            BF16,
            "out_scale",
            {"frames": 63, "block_size": 33, "sizes": (1, 1, 128, 40)},
            marks=slow,
        ),
        pytest.param(
            F32,
            "l2",
            {"frames": 35, "block_size": 20, "sizes": (1, 1, 40, 64)},
            marks=slow,
        ),
        pytest.param(
            F16,
            "out_scale",
            {"frames": 65, "block_size": 200, "sizes": (2, 1, 32, 18)},
            marks=slow,
        ),
    ],
    ids=str,
)
def check_against_float64(dtype, norm, options):
    assert_as_exact_as_torch(make_case(**options), dtype, norm=norm)


@pytest.mark.parametrize("past", [4, pytest.param(19, marks=slow)])
def check_streams_with_a_past(past):
    """One younger than its cache, which holds zeros there, and one older."""
    case = make_case(frames=18, block_size=past + 1, past=past, sizes=(2, 1, 3, 4))
    for name in "kv":
        case[name][0, :, : past - 2] = 0.0
    past_frames = torch.tensor([2, 99])
    options = {"past_frames": past_frames}
    expected = run_hyperglu("torch", round_case(case, F32, F64, F64), **options)
    # The torch path has the gradients that zeros there would get.
    for gradient in expected[2:4]:
        gradient[0, :, : past - 2] = 0.0
    got = run_hyperglu("triton", round_case(case, F32, F32, F32), **options)
    for ours, truth in zip(got, expected):
        assert relative_error(ours, truth) < 1e-5


def check_rows_without_a_visible_key():
    case = make_case("relu", frames=5, sizes=(1, 1, 3, 4))
    case["k"][:, :, :4] = 0.0
    y, *gradients = run_hyperglu("triton", round_case(case, F32, F32, F32))
    assert y[:, :, :4].abs().max() == 0
    assert all(gradient.isfinite().all() for gradient in gradients)


def check_the_operator_by_the_rules_of_torch():
    case = make_case("relu", frames=3, sizes=(1, 1, 3, 4))
    case = round_case(case, F32, F32, F32)
    leaves(case)
    operands = [
        *(case[name].detach().transpose(1, 2).requires_grad_() for name in "qkv"),
        *(
            tensor.detach().requires_grad_()
            for name, scores in (("mix1", "q"), ("mix2", "v"))
            for tensor in triton_path._with_control(case[name], case[scores])
        ),
    ]
    arguments = *operands, None, 5, True, 1e-12
    torch.library.opcheck(torch.ops.hyperconformer.hyperglu, arguments)


def check_the_mixer_takes_them():
    """Strided heads, shared mixings, and a stream in steps."""
    options = {"block_size": 5, "op1_rank": 2, "op2_rank": 3, "op1_per_head": False}
    x = torch.randn(2, 7, 12)
    outputs = []
    for backend in ("torch", "triton"):
        torch.manual_seed(0)
        mixer = HyperGLUMixer(12, 1, backend=backend, **options)
        with torch.no_grad():
            outputs.append(mixer(x)[0])
    assert relative_error(*outputs) < 1e-5
    state = mixer.init_state(2)
    with torch.no_grad():
        first, state = mixer(x[:, :3], state=state)
        rest, state = mixer(x[:, 3:], state=state)
    assert relative_error(torch.cat([first, rest], 1), outputs[0]) < 1e-5


@slow
def check_compiled_whole():
    parameters = round_case(make_case("relu", sizes=(1, 1, 3, 4)), F32, F32, F32)

    def mix(x, control):
        case = {**parameters, "q": x, "k": x, "v": x}
        for name in ("mix1", "mix2"):
            case[name] = parameters[name]._replace(control=control)
        return hyperglu(**case, backend="triton")

    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager", dynamic=True)
    for frames in (7, 9):
        x = torch.randn(2, 1, frames, 3, requires_grad=True)
        control = torch.rand(2, 1, frames, 3)
        expected, got = mix(x, control), compiled(x, control)
        assert torch.equal(got, expected)
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
        (gradient,) = torch.autograd.grad(got.square().sum(), x)
        assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"chunk_frames": None}, "takes causal offset layout in chunks only"),
        ({"causal": False}, "takes causal offset layout in chunks only"),
        ({"layout": "identity"}, "takes causal offset layout in chunks only"),
        ({}, "takes float32, bfloat16 or float16 tensors, got torch.float64"),
        (
            {"sizes": (1, 1, 3, 65)},
            "takes float32 heads whose width is at most 64, got 65",
        ),
        ({"rank": 17}, "rank 1 to 16, got 17"),
    ],
    ids=str,
)
def check_what_the_kernels_cannot_take(change, message):
    change = dict(change)
    case = make_case(frames=4, sizes=change.pop("sizes", (1, 1, 3, 4)))
    if "rank" in change:
        rank, mix = change.pop("rank"), case["mix1"]
        case["mix1"] = mix._replace(U=mix.U.new_zeros(2, 5, rank))
    if "heads" in message or "rank" in message:
        case = round_case(case, F32, F32, F32)
    with pytest.raises(ValueError, match=f"backend of HyperGLU.* {message}"):
        hyperglu(**case, **change, backend="triton")


def test_a_forced_path_that_cannot_run_says_why():
    case = round_case(make_case(), F32, F32, F32)
    with pytest.raises(ValueError, match="HyperGLU needs a CUDA device, got .* cpu"):
        hyperglu(**case, backend="triton")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        hyperglu(**case, backend="cuda")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        HyperGLUMixer(12, 1, backend="cuda")


@pytest.mark.parametrize("block_size", [8, 1000])
def test_forward_keeps_nothing_of_a_window(block_size):
    """Shapes alone, of what the operator hands to its backward."""
    with torch.device("meta"):
        case = make_case(frames=50, block_size=block_size, sizes=(2, 2, 4, 32))
    case = round_case(case, F32, F32, F32)
    operands = [case[name].transpose(1, 2) for name in "qkv"]
    for name, scores in (("mix1", "q"), ("mix2", "v")):
        operands += triton_path._with_control(case[name], case[scores])
    results = torch.ops.hyperconformer.hyperglu(*operands, None, block_size, True, 1.0)
    shapes = [tuple(result.shape) for result in results]
    assert shapes == [(2, 50, 2, 32), (2, 50, 4, 3), (2, 50, 2, 3), (2, 50, 2)]
