"""The HyperGLU op: the window against the dense definition, and its cost."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.operands import leaves, make_case
from hyperconformer.ops.hyperglu import LowRankMix, hyperglu
from hyperconformer.ops.hyperglu.reference import hyperglu_dense
from hyperconformer.ops.hyperglu.torch_path import band_to_lags, lags_to_band
from tests.goldens import load_golden, relative_error, section

CASES = {
    "glu": {},
    "relu": {"kind": "relu"},
    "no-mix1": {"mix1": False},
    "no-mix2": {"kind": "relu", "mix2": False},
    "no-diag": {"diag": False},
    "no-shortcut": {"shortcut": False},
    "bare": {"diag": False, "shortcut": False},
    "one-lag": {"block_size": 1},
    "one-frame": {"frames": 1},
    "long-window": {"block_size": 30},
}


@pytest.mark.parametrize("norm", ["out_scale", "l2", "none"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_window_equals_dense(options, norm):
    case = make_case(**options)
    inputs = leaves(case)
    expected = hyperglu(**case, norm=norm, chunk_frames=None)
    w = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * w).sum(), inputs, materialize_grads=True)
    for chunk_frames in (1, 4, 64):
        y = hyperglu(**case, norm=norm, chunk_frames=chunk_frames)
        assert relative_error(y, expected) < 1e-12
        got = torch.autograd.grad((y * w).sum(), inputs)
        for gradient, reference in zip(got, wanted):
            assert relative_error(gradient, reference) < 1e-11


@pytest.mark.parametrize("norm", ["out_scale", "none"])
@pytest.mark.parametrize("kind", ["glu", "relu"])
@pytest.mark.parametrize("past", [0, 4])
def test_gradcheck(kind, norm, past):
    """The handwritten backward against finite differences, young streams too."""
    case = make_case(kind, frames=5, block_size=5, past=past)
    past_frames = None
    if past:
        past_frames = torch.tensor([1, 6])
        case["k"][0, :, :3], case["v"][0, :, :3] = 0.0, 0.0
    inputs = leaves(case)

    def function(*_):
        return hyperglu(**case, norm=norm, past_frames=past_frames, chunk_frames=2)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_low_rank_parts_are_causal_convolutions():
    """h_ir = q_i . conv(k, U): what a row's summary sums over lags."""
    case = make_case(frames=9, block_size=5)
    q, k, U = case["q"], case["k"], case["mix1"].U
    summed = torch.zeros(2, 4, 9, 3).double()
    for i in range(9):
        for lag in range(min(i + 1, 5)):
            score = (q[:, :, i] * k[:, :, i - lag]).sum(-1)
            summed[:, :, i] += score[..., None] * U[:, 5 - 1 - lag]
    windows = F.pad(k, (0, 0, 4, 0)).unfold(2, 5, 1)
    convolved = torch.einsum("bhtdl,hlr->bhtdr", windows, U)
    h = torch.einsum("bhtd,bhtdr->bhtr", q, convolved)
    assert relative_error(h, summed) < 1e-12


def test_band_and_lags_are_inverse():
    x = torch.randn(3, 4, 6)
    band = lags_to_band(x)
    assert band.shape == (3, 4, 9)
    assert torch.equal(band_to_lags(band, 6), x)
    assert band.ne(0).sum() == x.numel()


@pytest.mark.parametrize("kind", ["glu", "relu"])
def test_row_without_a_visible_key_gives_zero(kind):
    case = make_case(kind)
    case["k"][:, :, :4] = 0.0
    inputs = leaves(case)
    for chunk_frames in (3, None):
        y = hyperglu(**case, chunk_frames=chunk_frames)
        assert y[:, :, :4].abs().max() == 0
        grads = torch.autograd.grad(y.square().sum(), inputs)
        assert all(gradient.isfinite().all() for gradient in grads)


def test_unmasked_mixing_shows_the_future():
    """The published settings that are refused, in the dense definition."""
    config = {"frames": 8, "block_size": 8}

    def early_change(layout, unmasked, others, norm):
        case = make_case(**config)
        case[unmasked] = case[unmasked]._replace(masked=False)
        if not others:
            case["mix2" if unmasked == "mix1" else "mix1"] = None
        y = hyperglu_dense(**case, layout=layout, norm=norm)
        with pytest.raises(ValueError, match="masked in causal mode"):
            hyperglu(**case, layout=layout, norm=norm)
        case["v"] = case["v"].clone()
        case["v"][:, :, 5:] += 1.0
        later = hyperglu_dense(**case, layout=layout, norm=norm)
        return relative_error(later[:, :, :5], y[:, :, :5])

    assert early_change("identity", "mix2", True, "out_scale") > 1e-3
    assert early_change("identity", "mix1", False, "out_scale") > 1e-3


def test_unmasked_offset_mixing_shows_the_length(goldens_folder):
    """`op1nomask` is what the dense definition gives, and no prefix of it holds."""
    config, arrays = load_golden(goldens_folder, "hyperglu_op1nomask_dense_only")
    case = make_case(frames=8, block_size=8)
    case["mix1"] = case["mix1"]._replace(masked=False)

    def prefix(frames):
        cut = {name: case[name][:, :, :frames] for name in "qkv"}
        for name in ("mix1", "mix2"):
            control = case[name].control[:, :, :frames]
            cut[name] = case[name]._replace(control=control)
        return hyperglu_dense(**{**case, **cut})[:, :, :5]

    assert relative_error(prefix(5), prefix(8)) > 1e-3
    assert relative_error(arrays["out/y"], arrays["out/y_chunked"]) > 1e-3
    assert relative_error(published_layer(config, arrays), arrays["out/y"]) < 1e-12


def published_layer(config, arrays):
    """The layer of the golden by hand, since its configuration is refused."""
    x, p = arrays["in/x"], section(arrays, "param")
    heads, taps = config["init"]["n_head"], p["conv1.conv.weight"].shape[-1]

    def split(z, parts):
        return z.unflatten(-1, (parts, -1)).transpose(1, 2)

    def convolve(name):
        padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
        weight = p[f"{name}.conv.weight"]
        return F.conv1d(padded, weight, groups=x.shape[-1]).transpose(1, 2)

    def gate(name):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]).sigmoid()

    def mix(op, control, parts, masked):
        factors = [p[f"{op}.mix.{name}"] for name in ("U", "Vt", "d")]
        return LowRankMix(*factors, split(gate(control), parts), True, masked)

    y = hyperglu_dense(
        split(F.linear(x, p["q.weight"]) * gate("left_gate"), 2 * heads),
        split(F.linear(convolve("conv1"), p["k.weight"]), 2 * heads),
        split(F.linear(convolve("conv2"), p["v.weight"]), heads),
        mix1=mix("op", "control1", 2 * heads, False),
        mix2=mix("op2", "control2", heads, True),
        block_size=config["init"]["block_size"],
    )
    y = y.transpose(1, 2).flatten(2) * gate("right_gate")
    return F.linear(y, p["c_proj.weight"])


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any tensor made inside it had."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


def memory(frames, block_size, chunk_frames):
    """Elements kept for backward, and the largest tensor made in both passes."""
    case = make_case(frames=frames, block_size=block_size)
    leaves(case)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (
            tensor.untyped_storage().nbytes() // 8
        )
        return tensor

    with LargestTensor() as mode:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = hyperglu(**case, chunk_frames=chunk_frames)
        y.sum().backward()
    return sum(kept.values()), mode.largest


def test_memory_is_linear_in_frames():
    kept, largest = memory(400, 300, 16)
    kept_twice, largest_twice = memory(800, 300, 16)
    assert kept_twice < 2.1 * kept
    # The scores of one chunk: 2 * 4 score sets, 16 queries, 16 + 300 keys.
    assert largest == largest_twice == 8 * 16 * (16 + 300)
    dense_kept, dense_largest = memory(300, 300, None)
    assert dense_largest >= 8 * 300 * 300 and dense_kept > 10 * kept


def test_memory_does_not_hold_the_window():
    """What backward keeps grows with block_size only by the parameters."""
    small, large = memory(400, 50, 16)[0], memory(400, 200, 16)[0]
    parameters_per_lag = 6 * (3 + 3 + 1)
    assert large - small <= 150 * parameters_per_lag


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "silu"}, "kind must be one of"),
        ({"norm": "l1"}, "norm must be one of"),
        ({"layout": "left"}, "layout must be one of"),
        ({"kind": "relu"}, "expects q"),
        ({"v": torch.zeros(2, 2, 4, 4)}, "expects q"),
        ({"chunk_frames": 0}, "chunk_frames must be >= 1"),
        ({"layout": "identity"}, "more frames than block_size = 5"),
        ({"causal": False}, "more frames than block_size = 5"),
    ],
    ids=str,
)
def test_op_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        hyperglu(**{**make_case(), **change})


def test_dense_form_refuses_a_past():
    with pytest.raises(ValueError, match="keys of earlier frames"):
        hyperglu(**make_case(past=3), chunk_frames=None)


def test_half_precision_inputs_are_summed_in_float32():
    """Rows whose squares and sums pass the range of float16, outputs that do not."""
    q = torch.full((1, 1, 50, 4), 40.0, dtype=torch.float16)
    v = torch.full((1, 1, 50, 4), 100.0, dtype=torch.float16)
    for chunk_frames in (16, None):
        y = hyperglu(q, q, v, kind="relu", block_size=50, chunk_frames=chunk_frames)
        assert y.dtype == torch.float16
        assert y[0, 0, -1, 0].item() == pytest.approx(100 * 50**0.5, rel=1e-3)
