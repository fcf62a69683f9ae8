"""The mixer linear_attention: goldens, padding, causality, chunks, streaming."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.core.masks import ChunkRule, chunk_mask
from hyperconformer.mixers.linear_attention import LinearAttention, rotary_codes
from tests.goldens import load_golden, relative_error, section

# lat_local_degenerate_mask is the published bug: frames that see nothing see all.
GOLDENS = [
    "causal_b1",
    "causal_b1_mask",
    "causal_b8",
    "causal_b8_mask",
    "causal_local1of4_b8",
    "context",
    "dimhead_rotary",
    "global",
    "global_mask",
    "local2of4",
    "local2of4_mask",
    "local_all",
    "local_all_causal_mask",
]

CONFIGURATIONS = {
    "global": {},
    "local": {"n_local_attn_heads": 4, "local_attn_window_size": 5},
    "mixed": {"n_local_attn_heads": 1, "local_attn_window_size": 5},
    "one_kv": {
        "n_local_attn_heads": 2,
        "local_attn_window_size": 5,
        "one_kv_head": True,
        "dim_head": 6,
    },
    "causal": {"causal": True},
    "causal_blind": {"causal": True, "blindspot_size": 4},
    "causal_local": {
        "causal": True,
        "n_local_attn_heads": 4,
        "local_attn_window_size": 3,
    },
    "causal_mixed": {
        "causal": True,
        "blindspot_size": 5,
        "n_local_attn_heads": 2,
        "local_attn_window_size": 3,
        "one_kv_head": True,
    },
}
CAUSAL = [name for name, options in CONFIGURATIONS.items() if "causal" in options]


def mixer(name):
    return LinearAttention(16, 4, **CONFIGURATIONS[name]).double()


def frames(*shape):
    return torch.randn(*shape, 16, dtype=torch.float64)


def golden_mixer(config, arrays, dtype):
    options = dict(config["init"])
    options.pop("receives_context", None)
    layer = LinearAttention(options.pop("dim"), options.pop("heads"), **options)
    layer.load_state_dict(section(arrays, "param"), strict=True)
    return layer.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", GOLDENS)
def test_golden(goldens_folder, name, dtype):
    config, arrays = load_golden(goldens_folder, f"lat_{name}", dtype)
    layer = golden_mixer(config, arrays, dtype)
    given_inputs = section(arrays, "in")
    for key in ("x", "context", "pos_emb"):
        if key in given_inputs:
            given_inputs[key].requires_grad_()
    mask = given_inputs.get("input_mask", given_inputs.get("context_mask"))
    y = layer.attend(
        given_inputs["x"],
        context=given_inputs.get("context"),
        key_padding_mask=None if mask is None else ~mask,
        rotary=given_inputs.get("pos_emb"),
    )
    (y * given_inputs["w"]).sum().backward()
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    assert relative_error(y, arrays["out/y"]) < tolerance
    tensors = {**given_inputs, **dict(layer.named_parameters())}
    gradients = section(arrays, "grad")
    assert gradients.keys() >= {"x", "to_q.weight", "to_out.bias"}
    for key, gradient in gradients.items():
        assert relative_error(tensors[key].grad, gradient) < tolerance, key


def test_rotary_codes_are_the_goldens(goldens_folder):
    _, arrays = load_golden(goldens_folder, "lat_dimhead_rotary")
    expected = arrays["in/pos_emb"]
    codes = rotary_codes(*expected.shape[1:], dtype=torch.float64)
    assert (codes - expected).abs().max() < 1e-5


def test_degenerate_neighbourhood_gives_zero(goldens_folder):
    """The published layer averages hidden and absent keys there; see its golden."""
    config, arrays = load_golden(goldens_folder, "lat_local_degenerate_mask")
    layer = golden_mixer(config, arrays, torch.float64)
    real = arrays["in/input_mask"]
    y = layer.attend(arrays["in/x"], key_padding_mask=~real)
    window = config["init"]["local_attn_window_size"]
    any_real = real.unflatten(1, (-1, window)).any(-1)
    near = torch.nn.functional.pad(any_real, (1, 1))
    near = near[:, :-2] | near[:, 1:-1] | near[:, 2:]
    blind = ~near.repeat_interleave(window, dim=1)
    assert blind.any()
    expected = layer.to_out.bias.expand_as(y[blind])
    torch.testing.assert_close(y[blind], expected)
    assert (arrays["out/y"][blind] - expected).abs().max() > 0.1
    torch.testing.assert_close(y[~blind], arrays["out/y"][~blind])


def test_equals_the_live_package():
    package = pytest.importorskip("linear_attention_transformer")
    theirs = package.linear_attention_transformer.SelfAttention(
        16, 4, causal=True, blindspot_size=8, n_local_attn_heads=1
    )
    ours = LinearAttention(16, 4, causal=True, blindspot_size=8, n_local_attn_heads=1)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 256, 16)
    torch.testing.assert_close(ours(x)[0], theirs(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        theirs(x[:, :250])
    assert ours(x[:, :250])[0].shape == (2, 250, 16)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradcheck(name):
    layer = mixer(name)
    x = frames(2, 7).requires_grad_()
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    assert torch.autograd.gradcheck(
        lambda x: layer(x, padding_mask=mask)[0], x, fast_mode=True
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_nan_in_padding_reaches_nothing_and_batch_equals_alone(name):
    layer = mixer(name)
    x = frames(2, 13)
    mask = torch.zeros(2, 13, dtype=torch.bool)
    mask[1, 9:] = True
    x[1, 9:] = float("nan")
    x.requires_grad_()
    y, state = layer(x, padding_mask=mask)
    assert state is None and y.isfinite().all()
    torch.testing.assert_close(y[:1], layer(x[:1])[0])
    torch.testing.assert_close(y[1:, :9], layer(x[1:, :9])[0])
    y[~mask].square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad[1, 9:] == 0).all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_is_not_seen(name):
    layer = mixer(name)
    x = frames(1, 14)
    y, _ = layer(x)
    for cut in range(1, 14):
        changed = x.clone()
        changed[:, cut:] += 10 * frames(1, 14 - cut)
        torch.testing.assert_close(layer(changed)[0][:, :cut], y[:, :cut])
        assert (layer(changed)[0][:, cut:] - y[:, cut:]).abs().max() > 1e-3


@pytest.mark.parametrize("rule", [ChunkRule(4), ChunkRule(4, 1), ChunkRule(3, 0)])
@pytest.mark.parametrize("name", ["global", "local", "mixed", "causal_local"])
def test_chunk_rule(name, rule):
    """Frame j moves frame i only where the rule lets it be seen."""
    layer = mixer(name)
    x = frames(1, 14).requires_grad_()
    y, _ = layer(x, chunk=rule)
    hidden = chunk_mask(14, rule)
    for i in range(14):
        (moved,) = torch.autograd.grad(y[0, i].sum(), x, retain_graph=True)
        by_frame = moved[0].abs().sum(-1)
        assert (by_frame[hidden[i]] == 0).all()
        if name == "global":
            assert (by_frame[~hidden[i]] > 0).all()


def test_one_chunk_is_the_whole():
    layer, x = mixer("mixed"), frames(2, 11)
    torch.testing.assert_close(layer(x, chunk=ChunkRule(11))[0], layer(x)[0])


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_honours_unbounded_chunks_and_refuses_bounded(name):
    layer, x = mixer(name), frames(2, 11)
    torch.testing.assert_close(layer(x, chunk=ChunkRule(4))[0], layer(x)[0])
    with pytest.raises(ValueError, match="bounded left context"):
        layer(x, chunk=ChunkRule(4, left_chunks=1), state=layer.init_state(2))
    if name != "causal_local":
        with pytest.raises(ValueError, match="bounded left context"):
            layer(x, chunk=ChunkRule(4, left_chunks=1))


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(CAUSAL),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_steps_equal_the_whole(name, steps):
    layer = mixer(name)
    x = frames(2, sum(steps))
    whole, _ = layer(x)
    state = layer.init_state(2)
    parts = []
    for part in x.split(steps, dim=1):
        before = {key: value.clone() for key, value in state.items()}
        y, new_state = layer(part, state=state)
        assert all(torch.equal(before[key], state[key]) for key in state)
        assert {k: (v.shape, v.dtype) for k, v in new_state.items()} == {
            k: (v.shape, v.dtype) for k, v in state.items()
        }
        state = new_state
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(CAUSAL),
    sizes=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=6
    ),
)
def test_streams_may_run_at_their_own_pace(name, sizes):
    """Each step brings each stream its own number of frames, then NaN padding."""
    layer = mixer(name)
    streams = [frames(sum(counts) + 1) for counts in zip(*sizes)]
    wholes = [layer(x[None])[0][0] for x in streams]
    state, seen = layer.init_state(2), [0, 0]
    for counts in sizes:
        longest = max(*counts, 1)
        x = torch.full((2, longest, 16), float("nan"), dtype=torch.float64)
        mask = torch.ones(2, longest, dtype=torch.bool)
        for row, count in enumerate(counts):
            x[row, :count] = streams[row][seen[row] : seen[row] + count]
            mask[row, :count] = False
        y, state = layer(x, padding_mask=mask, state=state)
        for row, count in enumerate(counts):
            expected = wholes[row][seen[row] : seen[row] + count]
            torch.testing.assert_close(y[row, :count], expected)
            seen[row] += count
    assert state["frames_seen"].tolist() == seen


def test_streams_can_be_stacked_and_split():
    layer, x = mixer("causal_mixed"), frames(2, 17)
    whole, _ = layer(x)
    _, ahead = layer(x[:1, :11], state=layer.init_state(1))
    _, behind = layer(x[1:, :4], state=layer.init_state(1))
    state = {key: torch.cat([ahead[key], behind[key]]) for key in ahead}
    y, _ = layer(torch.stack([x[0, 11:17], x[1, 4:10]]), state=state)
    torch.testing.assert_close(y, torch.stack([whole[0, 11:17], whole[1, 4:10]]))


def test_streaming_ten_minutes_stays_exact():
    """Sums over 20,000 frames in float32 against float64."""
    layer = LinearAttention(16, 4, causal=True)
    x = torch.randn(1, 20_000, 16)
    state = layer.init_state(1)
    for part in x.split(1000, dim=1):
        y, state = layer(part, state=state)
    whole, _ = layer.double()(x.double())
    assert relative_error(y, whole[:, -1000:]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_autocast_on_long_correlated_input(name, dtype):
    layer = LinearAttention(16, 4, **CONFIGURATIONS[name])
    x = (torch.randn(1, 1, 16) * 10).expand(1, 30_000, 16)
    with torch.autocast("cpu", dtype=dtype):
        y, _ = layer(x)
    assert y.isfinite().all()
    assert relative_error(y, layer(x)[0]) < 0.05


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_heads": 3}, "must divide d_model = 16"),
        ({"n_local_attn_heads": 5}, "between 0 and 4"),
        ({"blindspot_size": 0}, "must be >= 1"),
        ({"local_attn_window_size": 0}, "must be >= 1"),
    ],
)
def test_constructor_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        LinearAttention(16, **{"num_heads": 4, **options})


def test_call_refusals():
    x = frames(2, 6)
    with pytest.raises(ValueError, match="cannot stream"):
        mixer("global")(x, state={})
    with pytest.raises(ValueError, match="causal=True"):
        mixer("global").init_state(2)
    for name in ("causal", "local"):
        with pytest.raises(ValueError, match="non-causal mixer without local heads"):
            mixer(name).attend(x, context=x)
    with pytest.raises(ValueError, match="neither rotary"):
        mixer("global").attend(x, context=x, chunk=ChunkRule(2))
