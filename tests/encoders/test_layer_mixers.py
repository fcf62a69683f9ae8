"""A mixer for each layer: what the settings mean, and that a hybrid stack keeps every
promise of its parts."""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.encoders.conformer import ConformerEncoder
from hyperconformer.encoders.layer_mixers import layer_mixers
from hyperconformer.mixers.summary_mixing import SummaryMixing
from hyperconformer.model.transformer_asr import HyperConformerASR

A, B = "hypermixing", "RoPEMHA"
SIZES = {
    "tgt_vocab": 5,
    "input_size": 6,
    "d_model": 16,
    "nhead": 2,
    "d_ffn": 32,
    "num_encoder_layers": 3,
    "num_decoder_layers": 1,
    "kernel_size": 3,
    "normalize_before": True,
    "causal": False,
    "dropout": 0.0,
}


def model(attention_type, **more):
    torch.manual_seed(3)
    return HyperConformerASR(attention_type=attention_type, **{**SIZES, **more}).eval()


@pytest.mark.parametrize(
    "rule, expected",
    [
        ({"from": A, "last": B}, "AAAAAB"),
        ({"from": A, "last": B, "every": 2}, "ABABAB"),
        ({"from": A, "last": B, "every": 4}, "ABAAAB"),
        ({"from": A, "last": B, "every": 1}, "BBBBBB"),
        ({"from": A, "last": B, "every": 9}, "AAAAAB"),
        ([A, A, B, A, B, A], "AABABA"),
        (B, "BBBBBB"),
    ],
)
def test_which_layer_has_which_mixer(rule, expected):
    names = {"A": A, "B": B}
    found = [mixer for mixer, _ in layer_mixers(rule, None, 6)]
    assert found == [names[letter] for letter in expected]


def test_options_of_every_layer_of_a_mixer_and_of_each_layer():
    mixers = [A, B, SummaryMixing]
    options = {"causal": True, B: {"causal": False}, "SummaryMixing": {"x": 1}}
    assert layer_mixers(mixers, options, 3) == [
        (A, {"causal": True}),
        (B, {"causal": False}),
        (SummaryMixing, {"causal": True, "x": 1}),
    ]
    listed = layer_mixers(mixers, [{"tied": True}, None, {}], 3)
    assert [own for _, own in listed] == [{"tied": True}, {}, {}]
    named = layer_mixers(A, {A: {"tied": True}}, 2)
    assert named == layer_mixers(A, {"tied": True}, 2)


@pytest.mark.parametrize(
    "mixer, options, message",
    [
        ([A, B], None, "attention_type holds 2 mixers, but the encoder has 3 layers"),
        ([A, "RoPE", B], None, "encoder layer 2 of 3: unknown mixer 'RoPE'"),
        ([], None, "attention_type holds 0 mixers"),
        ({"from": A}, None, "needs `last`"),
        ({"from": A, "last": B, "evry": 2}, None, "unknown key 'evry'.*'every'"),
        (
            {"from": A, "last": B, "every": 0},
            None,
            "`every` must be .* from 1 on, got 0",
        ),
        ({"from": A, "last": B, "every": True}, None, "`every` must be .* got True"),
        (
            [A, A, B],
            [{}],
            "mixer_options holds 1 entries, but the encoder has 3 layers",
        ),
        ([A, A, B], {"tied": True}, "layer 3 of 3: unknown option of mixer 'RoPEMHA'"),
        ([A, A, B], {A: {"tid": 1}}, "layer 1 of 3: unknown option .* 'tid'.*'tied'"),
        ([A, A, B], {A: {"tied": 1}}, "layer 1 of 3: option 'tied' .* must be bool"),
        (A, [{}, {"tid": 1}, {}], "layer 2 of 3: unknown option .* 'tid'.*'tied'"),
        ([A, A, B], {A: 3}, "options of mixer 'hypermixing' must be names and values"),
        (
            [A, A, B],
            [{}, 3, {}],
            "layer 2 of 3: options of mixer 'hypermixing' must be",
        ),
        ([A, A, B], {"regularMHA": {}}, "options of 'regularMHA', which no layer has"),
        (3, None, "unknown mixer"),
    ],
)
def test_mistakes_say_which_layer(mixer, options, message):
    with pytest.raises(ValueError, match=message):
        model(mixer, mixer_options=options)


@pytest.mark.parametrize(
    "mixer, encoder",
    [
        (A, "conformer"),
        (B, "transformer"),
        ("RelPosMHAXL", "conformer"),
        ("summary_mixing", "branchformer"),
    ],
)
def test_equal_names_are_the_single_name(mixer, encoder):
    """Bit by bit: the parameters, what is encoded and what is decoded."""
    sizes = {"encoder_module": encoder, "csgu_linear_units": 16}
    one, each = model(mixer, **sizes), model([mixer] * 3, **sizes)
    rule = model({"from": mixer, "last": mixer, "every": 2}, **sizes)
    x, targets = torch.randn(2, 9, 6), torch.tensor([[1, 2], [3, 4]])
    for other in (each, rule):
        assert list(one.state_dict()) == list(other.state_dict())
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
        for got, expected in zip(other(x, targets), one(x, targets)):
            assert torch.equal(got, expected)
        assert other.attention_type == mixer


def test_layers_are_initialised_as_their_mixers_are():
    """Xavier for SpeechBrain's mixers, their own for the others."""
    hybrid = model(["RoPEMHA", "summary_mixing", "summary_mixing"])
    width = SIZES["d_model"] // SIZES["nhead"]
    weight = hybrid.encoder.layers[1].mha_layer.summary.weight
    assert weight.abs().max() <= width**-0.5  # uniform; Xavier's is normal
    assert hybrid.adds_position and not model([A, B, A]).adds_position


@pytest.mark.parametrize("mixers", [[A, B, "summary_mixing"], ["regularMHA", A, B]])
def test_a_batch_gives_what_each_utterance_gives_alone(mixers):
    stack = model(mixers).double()
    x, lengths = torch.randn(3, 20, 6).double(), torch.tensor([20, 11, 3])
    x[lengths_to_padding_mask(lengths, 20)] = float("nan")
    together = stack.encode(x, lengths / 20)
    for row, length in enumerate(lengths):
        alone = stack.encode(x[row : row + 1, :length])
        assert (together[row, :length] - alone[0]).abs().max() < 1e-10


def test_a_causal_hybrid_sees_no_future():
    mixers = ["linear_attention", "RoPEMHA", "hyperglu"]
    options = {"hyperglu": {"block_size": 4, "qk_rank": 4}}
    stack = model(mixers, mixer_options=options, causal=True).double()
    x = torch.randn(1, 14, 6).double()
    y = stack.encode(x)
    for cut in range(1, 14):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        assert (stack.encode(changed)[:, :cut] - y[:, :cut]).abs().max() < 1e-10
    with pytest.raises(
        ValueError, match="layer 2 of 3: causal=True, but .*HyperMixing"
    ):
        model([B, A, B], causal=True)


@pytest.mark.parametrize("left_chunks", [2, None])
def test_streamed_equals_offline(left_chunks):
    mixers = [A, B, "summary_mixing"] if left_chunks else [A, "summary_mixing", A]
    sizes = {"d_ffn": 32, "nhead": 2, "kernel_size": 3, "attention_type": mixers}
    torch.manual_seed(2)
    stack = ConformerEncoder(3, 16, **sizes).double().eval()
    rule, x = ChunkRule(4, left_chunks), torch.randn(2, 18, 16).double()
    whole, _ = stack(x, chunk=rule)
    state, steps = stack.init_state(2, chunk=rule, dtype=torch.float64), []
    for begin in (0, 4, 12, 16):
        end = {0: 4, 4: 12, 12: 16, 16: 18}[begin]
        y, state = stack.step(x[:, begin:end], None, rule, state)
        steps.append(y)
    assert (torch.cat(steps, 1) - whole).abs().max() < 1e-10


def test_a_stack_that_cannot_stream_says_which_mixer_cannot():
    stack = ConformerEncoder(
        2, 16, d_ffn=32, nhead=2, kernel_size=3, attention_type=[A, "linear_attention"]
    )
    with pytest.raises(ValueError, match="LinearAttention cannot stream"):
        stack.init_state(1, chunk=ChunkRule(4))
