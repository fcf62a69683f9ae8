"""HyperGLU and HyperMLP: the published layer, the token mixers, their state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.core.masks import ChunkRule, chunk_mask, lengths_to_padding_mask
from hyperconformer.mixers.hyperglu import (
    HyperGLU,
    HyperGLUConfig,
    HyperGLUMixer,
    HyperMLPMixer,
)
from tests.goldens import load_golden, relative_error, section

# The published rotary is no rotation; op1nomask leaks the length of the sequence.
GOLDENS = [
    "T97_h8",
    "T_eq_L",
    "amask_holes_relu",
    "amask_identity_noncausal",
    "amask_offset",
    "bias_ranks",
    "default",
    "glu_gateact_none",
    "glu_l2",
    "glu_nogates_k3",
    "glu_nonorm",
    "glu_noop1",
    "glu_noop2",
    "glu_noqkgate",
    "glu_novogate_gateact_none",
    "identity_causal",
    "identity_noncausal",
    "identity_noncausal_relu_Teq",
    "nodiag_noshortcut",
    "op2_nodiag",
    "relu_l2_Teq",
    "relu_nonorm_noconv",
    "relu_noops",
    "relu_outscale",
]


def golden_layer(config, arrays, dtype):
    layer = HyperGLU(HyperGLUConfig(**config["init"])).to(dtype)
    layer.load_state_dict(section(arrays, "param"), strict=True)
    return layer


@pytest.mark.parametrize("impl", ["dense", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", GOLDENS)
def test_golden(goldens_folder, name, dtype, impl):
    config, arrays = load_golden(goldens_folder, f"hyperglu_{name}", dtype)
    layer = golden_layer(config, arrays, dtype)
    x = arrays["in/x"].requires_grad_()
    y = layer(
        x,
        arrays.get("in/attention_mask"),
        impl=impl,
        chunk_T=config["call"]["chunk_T"],
    )
    (y * arrays["in/w"]).sum().backward()
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    assert relative_error(y, arrays["out/y"]) < tolerance
    got = {"x": x.grad, **{n: p.grad for n, p in layer.named_parameters()}}
    expected = section(arrays, "grad")
    assert got.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(got[key], gradient) < tolerance, key


def randomised(module):
    """Parameters large enough that every term of the layer matters."""
    for name, p in module.named_parameters():
        scale = 0.3 if name.endswith(("U", "Vt", "d", "bias")) else 0.5
        torch.nn.init.normal_(p, std=scale)
    return module


def make_layer(**options):
    options = {"n_embd": 12, "n_head": 2, "block_size": 9, "qk_rank": 8, **options}
    cfg = HyperGLUConfig(**{"op1_rank": 3, "op2_rank": 2, "chunk_T": 5, **options})
    return randomised(HyperGLU(cfg)).double()


def make_mixer(cls=HyperGLUMixer, **options):
    options = {"block_size": 9, "chunk_frames": 5, "qk_rank": 8, **options}
    return randomised(cls(12, 2, **options)).double().eval()


VARIANTS = {
    "glu": {},
    "relu": {"attn_kind": "relu"},
    "rope": {"use_rope": True},
    "plain": {"use_op1": False, "use_op2": False, "attn_norm": "none"},
    "l2-bias-noconv": {"attn_norm": "l2", "bias": True, "use_kv_conv": False},
    "shared-mixing": {"op1_per_head": False, "op2_per_head": False},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def test_quick_start_of_the_seed():
    cfg = HyperGLUConfig(
        n_embd=512,
        n_head=8,
        block_size=2048,
        bias=False,
        attn_kind="glu",
        attn_norm="out_scale",
        qk_rank=None,
        vo_rank=None,
        do_masking=True,
        aligner_kind="offset",
        use_kv_conv=True,
        conv_kernel_size=4,
        use_rope=False,
        rope_base=10000.0,
        gate_act="sigmoid",
        use_qk_gate=True,
        use_vo_gate=True,
        use_op1=True,
        op1_rank=16,
        op1_per_head=True,
        op1_use_diag=True,
        op1_shortcut=True,
        op1_do_masking=True,
        use_op2=True,
        op2_rank=16,
        op2_per_head=True,
        op2_use_diag=True,
        op2_shortcut=True,
        op2_do_masking=True,
        impl_default="chunked",
        chunk_T=1024,
        norm_eps=1e-12,
    )
    layer = HyperGLU(cfg).eval()
    with torch.no_grad():
        assert layer(torch.randn(2, 128, 512)).shape == (2, 128, 512)
        half = layer.bfloat16()(torch.randn(1, 40, 512, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@variants
@pytest.mark.parametrize("frames", [1, 8, 9, 31])
def test_dense_equals_chunked_at_any_length(options, frames):
    layer = make_layer(**options)
    x = torch.randn(2, frames, 12, dtype=torch.float64)
    expected = layer(x, impl="dense")
    for chunk_T in (1, 4, 1000):
        got = layer(x, impl="chunked", chunk_T=chunk_T)
        assert relative_error(got, expected) < 1e-12


@variants
def test_longer_inputs_slide(options):
    """Frames beyond ``reach`` are forgotten, whatever stands there."""
    layer = make_layer(**options)
    x = torch.randn(1, 40, 12, dtype=torch.float64)
    y, other = layer(x), x.clone()
    other[:, : 39 - layer.reach] = 7.0
    if "use_rope" in options:
        assert relative_error(layer(other)[:, -1], y[:, -1]) < 1e-12
    else:
        assert torch.equal(layer(other)[:, -1], y[:, -1])
    other[:, 39 - layer.reach] += 1.0
    assert relative_error(layer(other)[:, -1], y[:, -1]) > 1e-6


@variants
def test_the_future_changes_nothing(options):
    layer = make_layer(**options)
    x = torch.randn(1, 14, 12, dtype=torch.float64)
    y = layer(x)
    for cut in range(1, 14):
        other = x.clone()
        other[:, cut:] = torch.randn_like(other[:, cut:])
        assert torch.equal(layer(other)[:, :cut], y[:, :cut])
        assert relative_error(layer(x[:, :cut]), y[:, :cut]) < 1e-12


def test_rotary_is_a_rotation():
    """Scores depend on i - j only; by the published formula they do not."""
    layer = make_layer(use_rope=True, qk_rank=16)
    q, k = torch.randn(2, 1, 4, 6, 4, dtype=torch.float64)

    def scores(rotate, at):
        position = torch.tensor([at])
        return rotate(q, position) @ rotate(k, position).transpose(-1, -2)

    def published(z, position):
        t = position + torch.arange(z.shape[2])
        angle = (t[:, None] * 10000 ** (-torch.arange(2) / 2)).repeat(1, 2).double()
        turned = torch.stack([-z[..., 1::2], z[..., ::2]], dim=-1).flatten(-2)
        return z * angle.cos() + turned * angle.sin()

    assert relative_error(scores(layer._rotate, 977), scores(layer._rotate, 0)) < 1e-12
    assert relative_error(scores(published, 977), scores(published, 0)) > 0.1
    rotated = layer._rotate(q, torch.tensor([5]))
    assert relative_error(rotated.norm(dim=-1), q.norm(dim=-1)) < 1e-12


def test_rotated_layer_is_shift_invariant():
    """Silence before the first frame is neutral where no mixing writes into it."""
    layer = make_layer(use_rope=True, use_op1=False)
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    later = torch.cat([torch.zeros(2, 33, 12, dtype=torch.float64), x], dim=1)
    assert relative_error(layer(later)[:, 33:], layer(x)) < 1e-11


@pytest.mark.parametrize(
    "options",
    [
        {"op1_do_masking": False},
        {"op2_do_masking": False},
        {"aligner_kind": "identity", "op1_do_masking": False, "use_op2": False},
        {"aligner_kind": "identity", "op2_do_masking": False},
        {"attn_kind": "silu"},
        {"attn_norm": "l1"},
        {"aligner_kind": "left"},
        {"gate_act": "relu"},
        {"impl_default": "triton"},
        {"n_embd": 0},
        {"n_head": 0},
        {"block_size": 0},
        {"conv_kernel_size": 0},
        {"op1_rank": 0},
        {"op2_rank": 0},
        {"chunk_T": 0},
        {"norm_eps": 0.0},
        {"rope_base": -1.0},
        {"qk_rank": 6},
        {"qk_rank": 0},
        {"vo_rank": 7},
        {"qk_rank": 4, "use_rope": True},
    ],
    ids=str,
)
def test_config_refuses(options):
    with pytest.raises(ValueError, match="got|leak|multiple"):
        HyperGLUConfig(**{"n_embd": 32, "n_head": 2, "qk_rank": 8, **options})


def test_unmasked_mixing_is_allowed_where_it_is_not_used():
    HyperGLUConfig(n_embd=32, n_head=2, use_op1=False, op1_do_masking=False)
    HyperGLUConfig(n_embd=32, n_head=2, do_masking=False, op2_do_masking=False)


@pytest.mark.parametrize(
    "options",
    [{"do_masking": False}, {"aligner_kind": "identity"}],
    ids=["no-masking", "identity"],
)
def test_length_dependent_settings_have_a_limit(options):
    layer = make_layer(**options)
    layer(torch.randn(1, 9, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="block_size = 9"):
        layer(torch.randn(1, 10, 12, dtype=torch.float64))


def test_unknown_implementation_is_refused():
    with pytest.raises(ValueError, match="impl must be one of"):
        make_layer()(torch.randn(1, 3, 12, dtype=torch.float64), impl="fast")


# The token mixers


def both_mixers(**options):
    return [make_mixer(cls, **options) for cls in (HyperGLUMixer, HyperMLPMixer)]


FORMS = {
    "causal": {},
    "bidirectional": {"bidirectional": True},
    "identity": {"aligner_kind": "identity", "block_size": 30},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("cls", [HyperGLUMixer, HyperMLPMixer])
def test_padding_reaches_nothing(cls, options):
    """A batch equals each utterance alone; NaN in padding stays there."""
    mixer = make_mixer(cls, bias=True, **options)
    lengths = torch.tensor([23, 30, 1])
    padding_mask = lengths_to_padding_mask(lengths, 30)
    clean = torch.randn(3, 30, 12, dtype=torch.float64)
    x = clean.masked_fill(padding_mask[..., None], float("nan")).requires_grad_()
    y, state = mixer(x, padding_mask=padding_mask)
    assert state is None and y.isfinite().all()
    for b, length in enumerate(lengths):
        alone, _ = mixer(clean[b : b + 1, :length])
        assert relative_error(y[b, :length], alone[0]) < 1e-12
    y.masked_fill(padding_mask[..., None], 0.0).square().sum().backward()
    assert x.grad[padding_mask].abs().max() == 0
    assert x.grad[:2][~padding_mask[:2]].abs().amax(-1).min() > 0
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_bidirectional_sees_both_sides():
    mixer = make_mixer(bidirectional=True)
    x = torch.randn(1, 20, 12, dtype=torch.float64)
    y, _ = mixer(x)
    for frame in (5, 15):
        other = x.clone()
        other[:, frame] += 1.0
        assert relative_error(mixer(other)[0][:, 10], y[:, 10]) > 1e-6


def test_causal_attribute_tells_the_truth():
    assert make_mixer().causal and make_mixer(causal=True).causal
    for form in ("bidirectional", "identity"):
        mixer = make_mixer(**FORMS[form])
        assert not (mixer.causal or mixer.chunkable or mixer.streamable)
        with pytest.raises(ValueError, match="contradicts"):
            make_mixer(causal=True, **FORMS[form])
        with pytest.raises(ValueError, match="cannot stream"):
            mixer.init_state(1)
        with pytest.raises(ValueError, match="chunk rule"):
            mixer(torch.zeros(1, 4, 12, dtype=torch.float64), chunk=ChunkRule(2))
    with pytest.raises(ValueError, match="both directions"):
        make_mixer(bidirectional=True, aligner_kind="identity")


@pytest.mark.parametrize("bad", [[1, 0, 0], [0, 1, 0]], ids=["left", "hole"])
def test_padding_before_real_frames_is_refused(bad):
    padding_mask = torch.tensor([bad, [0, 0, 1]]).bool()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="must follow the real frames"):
        make_mixer()(x, padding_mask=padding_mask)


def test_chunk_rule_is_exact_or_refused():
    """With block_size 9 and 4 taps an output reads 11 earlier frames."""
    mixer = make_mixer()
    assert mixer.layer.reach == 11
    x = torch.randn(1, 40, 12, dtype=torch.float64, requires_grad=True)
    for rule in (ChunkRule(4), ChunkRule(4, 3), ChunkRule(11, 1)):
        y, _ = mixer(x, chunk=rule)
        hidden = chunk_mask(40, rule)
        for frame in (0, 12, 22, 39):
            gradient = torch.autograd.grad(y[0, frame].sum(), x, retain_graph=True)[0]
            assert gradient[0, hidden[frame]].eq(0).all()
    for rule in (ChunkRule(4, 2), ChunkRule(10, 1), ChunkRule(100, 0)):
        with pytest.raises(ValueError, match="reads 11 earlier frames"):
            mixer(x, chunk=rule)


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rope": True}, {"use_kv_conv": False, "bias": True}, {"block_size": 1}],
    ids=str,
)
@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.integers(1, 13), min_size=1, max_size=6), seed=st.integers(0, 9)
)
def test_steps_equal_the_whole(options, steps, seed):
    torch.manual_seed(seed)
    for mixer in both_mixers(**options):
        x = torch.randn(2, sum(steps), 12, dtype=torch.float64)
        state = mixer.init_state(2)
        outputs = []
        for part in x.split(steps, dim=1):
            before = {name: tensor.clone() for name, tensor in state.items()}
            y, after = mixer(part, state=state)
            assert all(torch.equal(state[name], before[name]) for name in state)
            outputs.append(y)
            state = after
        assert state["frames_seen"].tolist() == [sum(steps)] * 2
        whole, _ = mixer(x)
        assert relative_error(torch.cat(outputs, dim=1), whole) < 1e-10


@settings(max_examples=15, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1))
def test_ragged_streams_equal_each_alone(calls):
    """Streams advance by different counts, marked by padding at the end."""
    torch.manual_seed(0)
    mixer = make_mixer(use_rope=True)
    state = mixer.init_state(2)
    inputs, outputs = ([], []), ([], [])
    for counts in calls:
        x = torch.randn(2, 6, 12, dtype=torch.float64)
        padding_mask = lengths_to_padding_mask(torch.tensor(counts), 6)
        x = x.masked_fill(padding_mask[..., None], float("nan"))
        y, state = mixer(x, padding_mask=padding_mask, state=state)
        for b, count in enumerate(counts):
            inputs[b].append(x[b, :count])
            outputs[b].append(y[b, :count])
    for b in range(2):
        x = torch.cat(inputs[b])[None]
        if x.shape[1]:
            assert relative_error(torch.cat(outputs[b]), mixer(x)[0][0]) < 1e-10


def test_streams_that_began_at_different_times_stack():
    mixer = make_mixer()
    x = torch.randn(2, 12, 12, dtype=torch.float64)
    _, old = mixer(x[:1, :7], state=mixer.init_state(1))
    new = mixer.init_state(1)
    assert new["keys"].dtype == torch.float64
    stacked = {name: torch.cat([old[name], new[name]]) for name in old}
    y, _ = mixer(torch.stack([x[0, 7:], x[1, :5]]), state=stacked)
    assert relative_error(y[0], mixer(x[:1])[0][0, 7:]) < 1e-12
    assert relative_error(y[1], mixer(x[1:, :5])[0][0]) < 1e-12


@pytest.mark.parametrize("d_model", [16, 80, 144, 256, 400])
@pytest.mark.parametrize("use_rope", [False, True])
def test_default_rank_always_divides(d_model, use_rope):
    for cls, score_sets in ((HyperGLUMixer, 16), (HyperMLPMixer, 8)):
        cfg = cls(d_model, 8, block_size=4, use_rope=use_rope).layer.cfg
        assert cfg.qk_rank % score_sets == 0
        assert abs(cfg.qk_rank - d_model / 4) <= score_sets * (1 + use_rope)
    assert HyperGLUMixer(144, 8, block_size=4).layer.cfg.qk_rank == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_at_30000_frames(dtype):
    """Correlated frames of growing energy: finite, and near float32."""
    mixer = HyperGLUMixer(16, 2, block_size=24, chunk_frames=96).eval()
    common = torch.randn(1, 1, 16)
    x = 20 * common + torch.randn(1, 30000, 16)
    x.requires_grad_()
    expected, _ = mixer(x.detach())
    with torch.autocast("cpu", dtype=dtype):
        y, _ = mixer(x)
    y.float().sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()
    assert relative_error(y, expected) < 0.05


def test_streaming_step_exports():
    mixer = make_mixer().float()
    x, state = torch.randn(2, 4, 12), mixer.init_state(2)
    with torch.no_grad():
        exported = torch.export.export(mixer, (x,), {"state": state}).module()
        y, after = exported(x, state=state)
        expected, wanted = mixer(x, state=state)
    assert relative_error(y, expected) < 1e-5
    assert all(torch.equal(after[name], wanted[name]) for name in wanted)


def test_state_dict_round_trip():
    first, second = make_mixer(), make_mixer()
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    assert torch.equal(first(x)[0], second(x)[0])
