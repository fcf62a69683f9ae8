"""Names of mixers: strict, open to others, and helpful when wrong."""

import re
import typing

import pytest
import torch

from hyperconformer.encoders.conformer import ConformerEncoder
from hyperconformer.mixers import registry
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.mixers.registry import (
    build_mixer,
    check_options,
    list_mixers,
    mixer_class,
    mixer_options,
    register_mixer,
)


class Mean(TokenMixer):
    """Adds the mean over real frames."""

    def __init__(self, d_model, num_heads, *, gain=1.0):
        super().__init__(d_model)
        self.gain = gain

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        self.check_inputs(x, padding_mask, chunk, state)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        real = x.shape[1] if padding_mask is None else (~padding_mask).sum(1)[:, None]
        mean = x.sum(1) / real
        return x + self.gain * mean.unsqueeze(1), None


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))


def test_unknown_mixer_names_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'hypermixing'.*RoPEMHA"):
        build_mixer("hypermixin", d_model=8, num_heads=2)


def test_unknown_option_names_the_known_ones():
    with pytest.raises(ValueError, match="hypernetsize.*known:.*hypernet_size"):
        build_mixer("hypermixing", d_model=8, num_heads=2, hypernetsize=3)


@pytest.mark.parametrize(
    "mixer, option, value, wanted",
    [
        ("hypermixing", "tied", [True], "bool"),
        ("hypermixing", "tied", "true", "bool"),
        ("hypermixing", "tied", 1, "bool"),
        ("hypermixing", "hypernet_size", 32.0, "int or None"),
        ("hypermixing", "hypernet_size", True, "int or None"),
        ("hypermixing", "hypernet_size", "32", "int or None"),
        ("hypermixing", "max_length", None, "int"),
        ("hypermixing", "positions", None, "str"),
        ("hyperglu", "rope_base", "10000", "a finite number"),
        ("hyperglu", "norm_eps", float("nan"), "a finite number"),
        ("hypermlp", "bidirectional", "no", "bool"),
        ("linear_attention", "dropout", None, "a finite number"),
        ("linear_attention", "causal", [], "bool"),
        ("mixture_of_attention", "num_experts", {}, "int"),
        ("mixture_of_attention", "local_attn", "false", "bool"),
        ("regularMHA", "dropout", "0.1", "a finite number"),
        ("RelPosMHAXL", "causal", 0, "bool"),
        ("RoPEMHA", "dropout", [0.1], "a finite number"),
        ("summary_mixing", "activation", "gelu", "a class or function"),
        ("summary_mixing", "local_size", "all", "int or None"),
    ],
)
def test_values_of_another_type_are_refused(mixer, option, value, wanted):
    message = f"option '{option}' of mixer '{mixer}' must be {wanted}, got "
    with pytest.raises(ValueError, match=re.escape(message)):
        build_mixer(mixer, d_model=8, num_heads=2, **{option: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        ConformerEncoder(
            1, 8, d_ffn=16, nhead=2, attention_type=mixer, mixer_options={option: value}
        )


@pytest.mark.parametrize("mixer", list_mixers())
def test_every_option_of_every_mixer_has_a_type_and_a_default_of_it(mixer):
    hints = typing.get_type_hints(mixer_class(mixer).__init__)
    for name, parameter in mixer_options(mixer).items():
        assert name in hints
        check_options(mixer, {name: parameter.default})


def test_types_are_those_of_the_own_constructor():
    class Own(Mean):
        def __init__(
            self,
            d_model,
            num_heads,
            *,
            free=None,
            kind: typing.Literal["a", "b"] = "a",
            sizes: list[int] = (),
            half: "float | None" = None,
        ):
            super().__init__(d_model, num_heads)

    build_mixer(Own, d_model=4, num_heads=1, free=[3], kind="b", sizes=[1], half=1)
    for wrong in ({"kind": "c"}, {"sizes": 3}, {"half": "x"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))!r} of mixer 'Own'"):
            build_mixer(Own, d_model=4, num_heads=1, **wrong)


def test_sizes_and_options_as_a_whole_are_checked():
    for sizes in ((0, 1), (4, 0), (4, -2), (4.0, 2), (4, True), ("4", 2)):
        with pytest.raises(ValueError, match="must be a whole number from 1 on"):
            build_mixer("hypermixing", d_model=sizes[0], num_heads=sizes[1])
    with pytest.raises(ValueError, match="must be names and values"):
        ConformerEncoder(1, 8, d_ffn=16, nhead=2, mixer_options=["tied"])
    with pytest.raises(ValueError, match="unknown option .* 'num_heads'"):
        ConformerEncoder(1, 8, d_ffn=16, nhead=2, mixer_options={"num_heads": 4})
    with pytest.raises(ValueError, match="max_length must be >= 1"):
        build_mixer("hypermixing", d_model=8, num_heads=2, max_length=0)


def test_own_mixer_by_name(clean_registry):
    register_mixer("mean")(Mean)
    assert "mean" in list_mixers()
    mixer = build_mixer("mean", d_model=4, num_heads=1, gain=0.0)
    x = torch.randn(2, 3, 4)
    assert torch.equal(mixer(x)[0], x)


def test_own_mixer_by_class():
    encoder = ConformerEncoder(
        1, 8, d_ffn=16, nhead=2, attention_type=Mean, mixer_options={"gain": 2}
    )
    assert encoder.layers[0].mha_layer.gain == 2
    assert encoder(torch.randn(1, 5, 8))[0].shape == (1, 5, 8)


def test_a_name_is_given_once(clean_registry):
    with pytest.raises(ValueError, match="already registered"):
        register_mixer("hypermixing")(Mean)


def test_only_mixers_register(clean_registry):
    with pytest.raises(ValueError, match="TokenMixer"):
        register_mixer("linear")(torch.nn.Linear)
    with pytest.raises(ValueError, match="TokenMixer"):
        build_mixer(torch.nn.Linear, d_model=8, num_heads=2)


def test_causal_is_refused_by_a_mixer_that_sees_everything():
    with pytest.raises(ValueError, match="causal=True"):
        ConformerEncoder(1, 8, d_ffn=16, nhead=2, attention_type=Mean, causal=True)


def test_what_a_mixer_cannot_honour_is_refused():
    from hyperconformer.core.masks import ChunkRule

    mixer, x = Mean(4, 1), torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="chunk"):
        mixer(x, chunk=ChunkRule(2))
    with pytest.raises(ValueError, match="cannot stream"):
        mixer(x, state={})
    with pytest.raises(ValueError, match="cannot stream"):
        mixer.init_state(2)
    with pytest.raises(ValueError, match="T = 0"):
        mixer(x[:, :0])
    with pytest.raises(ValueError, match=r"\(B, T, 4\)"):
        mixer(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="bool"):
        mixer(x, padding_mask=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        mixer(x, padding_mask=torch.zeros(2, 4, dtype=torch.bool))


def test_a_mixer_with_the_old_name_of_a_question_is_refused():
    with pytest.raises(ValueError, match="Old: why_not_stream is called unsupported"):

        class Old(TokenMixer):
            def why_not_stream(self, chunk=None):
                return None
