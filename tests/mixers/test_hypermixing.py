"""The HyperMixing modules against both published implementations."""

import pytest
import torch
from torch import nn

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.hypermixing import HyperMixing, MultiHeadHyperMixing
from hyperconformer.ops.hypermixing import hypermixing
from tests.goldens import load_golden, relative_error, section

SPEECHBRAIN_CASES = [
    "sb_h1",
    "sb_h1_fix",
    "sb_h4_fix",
    "sb_h4_mask",
    "sb_h4_mask_T97",
    "sb_h8",
    "sb_h8_fix_mask",
    "sb_tied_h4_mask",
    "sb_tied_h8_fix",
]
IDIAP_CASES = [
    "idiap_cross_h2_bothmask_bias",
    "idiap_cross_h2_identity",
    "idiap_cross_h8_identity_noln_qmask",
    "idiap_self_h1",
    "idiap_self_h3_odd_d",
    "idiap_self_h4_bothmask",
    "idiap_self_h4_kmask",
    "idiap_self_h4_noln_bias",
    "idiap_tied_self_h2",
    "idiap_tied_self_h4_bothmask_bias",
]
BACKENDS = ["reference", "torch"]
PRECISIONS = [(torch.float64, 1e-8), (torch.float32, 1e-4)]


def from_speechbrain(arrays, config, dtype, backend):
    init = dict(config["init"])
    mixer = MultiHeadHyperMixing(
        init.pop("input_output_dim"), init.pop("num_heads"), backend=backend, **init
    )
    parameters = section(arrays, "param")
    mixer.load_state_dict(parameters, strict=True)
    codes = parameters.get("positional_encoding.pe")
    if codes is not None:
        # A module makes its own, whose float32 exponentials differ by a bit between
        # processors, as SpeechBrain's do.
        mixer.positional_encoding.pe = codes.flatten(0, -2)
    return mixer.to(dtype)


def from_idiap(arrays, config, dtype, backend):
    init = dict(config["init"])
    if init.get("token_information") == "identity":
        init["token_information"] = nn.Identity()
    mixing = HyperMixing(backend=backend, **init)
    mixing.load_state_dict(section(arrays, "param"), strict=True)
    return mixing.to(dtype)


def check_gradients(module, inputs, arrays, tolerance):
    expected = section(arrays, "grad")
    got = {name: value.grad for name, value in inputs.items()}
    got.update({name: value.grad for name, value in module.named_parameters()})
    assert set(got) == set(expected)
    for name, gradient in expected.items():
        assert relative_error(got[name], gradient) < tolerance, name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("case", SPEECHBRAIN_CASES)
def test_equals_speechbrain(goldens_folder, case, dtype, tolerance, backend):
    config, arrays = load_golden(goldens_folder, case, dtype)
    mixer = from_speechbrain(arrays, config, dtype, backend)
    x = arrays["in/x"].requires_grad_()
    y, state = mixer(x, padding_mask=arrays.get("in/key_padding_mask"))
    (y * arrays["in/w"]).sum().backward()
    assert state is None
    assert relative_error(y, arrays["out/y"]) < tolerance
    check_gradients(mixer, {"x": x}, arrays, tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("case", IDIAP_CASES)
def test_equals_idiap(goldens_folder, case, dtype, tolerance, backend):
    config, arrays = load_golden(goldens_folder, case, dtype)
    mixing = from_idiap(arrays, config, dtype, backend)
    inputs = {
        name: arrays[f"in/{name}"].requires_grad_()
        for name in ("x", "query", "key", "value")
        if f"in/{name}" in arrays
    }
    tokens = [inputs.get(name, inputs.get("x")) for name in ("query", "key", "value")]
    y = mixing(
        *tokens,
        key_padding_mask=arrays.get("in/key_padding_mask"),
        query_padding_mask=arrays.get("in/query_padding_mask"),
    )
    (y * arrays["in/w"]).sum().backward()
    assert relative_error(y, arrays["out/y"]) < tolerance
    check_gradients(mixing, inputs, arrays, tolerance)


def tail_mask(lengths):
    return torch.arange(max(lengths))[None] >= torch.tensor(lengths)[:, None]


def test_batch_equals_each_utterance_alone():
    mixer = MultiHeadHyperMixing(144, 8, hypernet_size=576)
    lengths = [61, 17, 40]
    x, mask = torch.randn(3, 61, 144), tail_mask(lengths)
    x = x.masked_fill(mask[..., None], float("nan"))
    y, _ = mixer(x, padding_mask=mask)
    for b, length in enumerate(lengths):
        alone, _ = mixer(x[b : b + 1, :length])
        assert relative_error(y[b : b + 1, :length], alone) < 1e-5
    bias = mixer.layer_norm.bias
    assert torch.equal(y[mask], bias.expand_as(y[mask]))


def test_gradients_are_finite_with_nan_in_padding():
    mixer = MultiHeadHyperMixing(16, 2)
    mask = tail_mask([40, 23])
    x = torch.randn(2, 40, 16).masked_fill(mask[..., None], float("nan"))
    x.requires_grad_()
    y, _ = mixer(x, padding_mask=mask)
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())
    assert x.grad.isfinite().all()
    assert (x.grad[mask] == 0).all()


@pytest.mark.parametrize("length", [10, 11, 45])
def test_any_length_whatever_max_length(length):
    short = MultiHeadHyperMixing(16, 2, max_length=10)
    long = MultiHeadHyperMixing(16, 2, max_length=100)
    long.load_state_dict(short.state_dict())
    x = torch.randn(1, length, 16)
    assert torch.equal(short(x)[0], long(x)[0])
    short = HyperMixing(16, 32, max_length=10)
    long = HyperMixing(16, 32, max_length=100)
    long.load_state_dict(short.state_dict())
    assert torch.equal(short(x, x, x), long(x, x, x))


def test_codes_grown_in_inference_mode_serve_training():
    mixer = MultiHeadHyperMixing(16, 2, max_length=3)
    x = torch.randn(1, 50, 16)
    with torch.inference_mode():
        expected, _ = mixer(x)
    y, _ = mixer(x)
    y.sum().backward()
    assert torch.equal(y, expected)


def test_one_frame_and_none():
    mixer = MultiHeadHyperMixing(16, 2)
    assert mixer(torch.randn(2, 1, 16))[0].isfinite().all()
    with pytest.raises(ValueError, match="at least one frame"):
        mixer(torch.randn(2, 0, 16))


def test_whole_utterance_in_one_chunk_is_the_full_context():
    mixer = MultiHeadHyperMixing(24, 2).double()
    x, mask = torch.randn(3, 30, 24, dtype=torch.float64), tail_mask([30, 17, 4])
    expected, _ = mixer(x, padding_mask=mask)
    for chunk_frames in (30, 1000):
        y, _ = mixer(x, padding_mask=mask, chunk=ChunkRule(chunk_frames))
        assert relative_error(y, expected) < 1e-12


def test_normalized_sums_do_not_grow_with_the_utterance():
    """Repeating an utterance without positions changes no mean."""
    mixer = MultiHeadHyperMixing(24, 2, normalize_by_frames=True).double()
    mixer.positional_encoding.pe.zero_()
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    once, _ = mixer(x)
    many, _ = mixer(x.repeat(1, 50, 1))
    assert relative_error(many[:, :9], once) < 1e-12


def test_state_does_not_fit():
    mixer, x = MultiHeadHyperMixing(16, 2), torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match="needs a chunk rule"):
        mixer(x, state=mixer.init_state(2))
    with pytest.raises(ValueError, match=r"3 chunks is needed .* got one with 1"):
        mixer(x, chunk=ChunkRule(5, 3), state=mixer.init_state(2))
    with pytest.raises(ValueError, match="state of 3 streams .* batch of 2"):
        mixer(x, chunk=ChunkRule(5), state=mixer.init_state(3))


def test_state_dict_holds_parameters_alone():
    mixer = MultiHeadHyperMixing(16, 2)
    hyper = [
        f"hyper.{net}.{name}"
        for net in ("w1_gen", "w2_gen")
        for name in ("fc1_weights", "fc1_biases", "fc2_weights", "fc2_biases")
    ]
    assert list(mixer.state_dict()) == [*hyper, "layer_norm.weight", "layer_norm.bias"]
    decaying = MultiHeadHyperMixing(16, 2, learned_decay=True)
    assert set(decaying.state_dict()) == {*mixer.state_dict(), "decay"}


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="the model width, got 3 heads and 16"):
        MultiHeadHyperMixing(16, 3)
    with pytest.raises(ValueError, match="hypernet_size, got 4 heads and 30"):
        HyperMixing(16, 30, num_heads=4)
    with pytest.raises(ValueError, match="backend 'gpu'"):
        HyperMixing(16, 32, backend="gpu")


def test_inputs_that_do_not_fit_are_refused():
    mixing = HyperMixing(16, 32)
    x = torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match="queries of shape"):
        mixing(x[..., :8], x, x)
    with pytest.raises(ValueError, match="values and keys"):
        mixing(x, x, x[:, :3])
    with pytest.raises(ValueError, match="must be bool"):
        mixing(x, x, x, key_padding_mask=torch.zeros(2, 5))
    with pytest.raises(ValueError, match="of one length, got 4 and 5"):
        HyperMixing(16, 32, tied=True)(x[:, :4], x, x)


def test_two_mixers_share_one_table():
    first, second = (MultiHeadHyperMixing(16, 2, max_length=50) for _ in range(2))
    assert first.positional_encoding.pe.data_ptr() == (
        second.positional_encoding.pe.data_ptr()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_over_many_correlated_frames(dtype):
    mixer = MultiHeadHyperMixing(16, 2, hypernet_size=64)
    x = (3 + 0.1 * torch.randn(1, 30_000, 16)).to(dtype)
    expected, _ = mixer(x.float())
    with torch.autocast("cpu", dtype=dtype):
        y, _ = mixer(x)
    assert y.dtype == dtype
    assert relative_error(y, expected) < 0.01


def test_training_step_keeps_few_tensors():
    mixer = MultiHeadHyperMixing(256, 8, hypernet_size=1024)
    x = torch.randn(1, 3000, 256, requires_grad=True)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixer(x)
    kept.pop(mixer.positional_encoding.pe.data_ptr())
    for parameter in mixer.parameters():
        kept.pop(parameter.data_ptr(), None)
    assert sum(kept.values()) < 4 * x.numel() * x.element_size()


@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_installed_speechbrain(tied):
    stock_module = pytest.importorskip("speechbrain.nnet.hypermixing")
    stock = stock_module.HyperMixing(144, 576, tied=tied, num_heads=8)
    mixer = MultiHeadHyperMixing(144, 8, hypernet_size=576, tied=tied)
    mixer.load_state_dict(stock.state_dict(), strict=True)
    x, mask = torch.randn(2, 70, 144), tail_mask([70, 31])
    expected, _ = stock(x, x, x, key_padding_mask=mask)
    assert relative_error(mixer(x, padding_mask=mask)[0], expected) < 1e-5


def test_beyond_the_length_where_speechbrain_fails():
    stock_module = pytest.importorskip("speechbrain.nnet.hypermixing")
    x = torch.randn(1, 3001, 16)
    with pytest.raises(RuntimeError):
        stock_module.HyperMixing(16, 32)(x, x, x)
    assert MultiHeadHyperMixing(16, 2, hypernet_size=32)(x)[0].isfinite().all()


@pytest.mark.integration
def test_compiled_whole():
    mixer = MultiHeadHyperMixing(16, 2)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 40, 16)
    assert relative_error(compiled(x)[0], mixer(x)[0]) < 1e-5


def test_without_positions_the_order_of_frames_is_nothing():
    torch.manual_seed(1)
    mixer = MultiHeadHyperMixing(16, 2, hypernet_size=32, positions="none").double()
    x, order = torch.randn(2, 9, 16).double(), torch.randperm(9)
    y, _ = mixer(x)
    assert torch.allclose(mixer(x[:, order])[0], y[:, order], atol=1e-12)
    chunk = ChunkRule(4)
    state, steps = mixer.init_state(2, dtype=torch.float64), []
    for first in range(0, 9, 4):
        step, state = mixer(x[:, first : first + 4], chunk=chunk, state=state)
        steps.append(step)
    assert torch.allclose(torch.cat(steps, 1), mixer(x, chunk=chunk)[0], atol=1e-12)


def test_rotary_positions_turn_what_the_hypernetworks_read():
    torch.manual_seed(2)
    mixer = MultiHeadHyperMixing(12, 3, hypernet_size=24, positions="rotary").double()
    x = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    z = torch.empty(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        for t in range(7):
            for head in range(3):
                for c in range(2):  # channels c and c + d / 2 of a head of width d = 4
                    first, second = 4 * head + c, 4 * head + c + 2
                    angle = x.new_tensor(t * 10000.0 ** (-2 * c / 4))
                    cos, sin = angle.cos(), angle.sin()
                    z[:, t, first] = x[:, t, first] * cos - x[:, t, second] * sin
                    z[:, t, second] = x[:, t, second] * cos + x[:, t, first] * sin
        nets = mixer.hyper.w1_gen.weights(), mixer.hyper.w2_gen.weights()
        expected = mixer.layer_norm(hypermixing(x, z, z, *nets, backend="reference"))
    got, _ = mixer(x)
    assert torch.allclose(got, expected, atol=1e-12)
    got.square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_positions_that_do_not_exist_or_do_not_stream_are_refused():
    with pytest.raises(ValueError, match="positions must be one of absolute"):
        MultiHeadHyperMixing(16, 2, positions="relative")
    with pytest.raises(ValueError, match="rotary"):
        MultiHeadHyperMixing(16, 2, positions="rotary", normalize_by_frames=True)
    mixer = MultiHeadHyperMixing(16, 2, positions="rotary")
    with pytest.raises(ValueError, match="cannot honour a chunk rule"):
        mixer(torch.randn(1, 4, 16), chunk=ChunkRule(2))
