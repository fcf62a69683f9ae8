"""``config.json``: what the table of classes can build, and what it says otherwise."""

import functools
import inspect
import json

import pytest
import torch

from hyperconformer.hub.config import (
    CLASSES,
    CONSTRUCTORS,
    MemoryBudget,
    build,
    locate,
    parameters,
    parse_config,
)
from hyperconformer.mixers.registry import list_mixers

TRANSFORMER = {
    "class": "HyperConformerASR",
    "tgt_vocab": 10,
    "input_size": 8,
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_ffn": 32,
    "normalize_before": True,
    "causal": False,
}
LANGUAGE_MODELS = [
    {"class": "TransformerLM", "vocab": 10, "d_model": 8, "nhead": 2, "d_ffn": 16}
    | {"num_encoder_layers": 1, "activation": {"constructor": "GELU"}},
    {"class": "LinearAttentionTransformerLM", "num_tokens": 20, "dim": 16, "depth": 2}
    | {"max_seq_len": 32, "heads": 4, "causal": True},
]


def on_both(config):
    """The module built with memory, and its tensors without."""
    with torch.device("meta"):
        empty = build({"m": config}, ["m"], "a.json")["m"].state_dict()
    return build({"m": config}, ["m"], "a.json")["m"], empty


def assert_same_tensors(module, empty):
    state = module.state_dict()
    assert list(state) == list(empty) and len(state) > 3
    for key, value in state.items():
        assert empty[key].is_meta and not value.is_meta
        assert (value.shape, value.dtype) == (empty[key].shape, empty[key].dtype)


@pytest.mark.parametrize("mixer", list_mixers())
@pytest.mark.parametrize("encoder", ["conformer", "transformer", "branchformer"])
def test_every_encoder_and_mixer_has_the_same_tensors_without_memory(encoder, mixer):
    config = {**TRANSFORMER, "encoder_module": encoder, "attention_type": mixer}
    assert_same_tensors(*on_both(config))


@pytest.mark.parametrize("config", LANGUAGE_MODELS, ids=lambda c: c["class"])
def test_language_models_have_the_same_tensors_without_memory(config):
    assert_same_tensors(*on_both(config))


@pytest.mark.parametrize("causal", [False, True])
def test_a_front_end_has_the_same_tensors_without_memory(causal):
    config = {"class": "ConvolutionFrontEnd", "input_shape": [8, 10, 80]}
    config |= {"residuals": [True] * 3, "out_channels": [4] * 3, "causal": causal}
    assert_same_tensors(*on_both(config))


def test_building_without_memory_leaves_no_trace():
    with torch.device("meta"):
        build({"m": TRANSFORMER}, ["m"], "a.json")
    module, _ = on_both(TRANSFORMER)
    tokens = torch.ones(2, 4).long()
    encoded, decoded = module(torch.rand(2, 9, 8), tokens)
    assert encoded.isfinite().all() and decoded.isfinite().all()
    assert not any(value.is_meta for value in module.buffers())


@pytest.mark.parametrize("name", [*CLASSES, *CONSTRUCTORS])
def test_the_signatures_of_the_tables_can_be_read(name):
    cls = locate({**CLASSES, **CONSTRUCTORS}[name])
    known = parameters(cls)
    assert "self" not in known
    own = inspect.signature(cls).parameters.values()
    plain = {one.name for one in own if one.kind is one.POSITIONAL_OR_KEYWORD}
    assert plain <= set(known)


def test_defaults_suggest_the_types_of_what_is_not_annotated():
    fbank = parameters(locate(CLASSES["Fbank"]))
    assert fbank["deltas"] == (False, bool | None)
    assert fbank["f_min"] == (0, float | None)
    assert fbank["filter_shape"] == ("triangular", str | None)
    # Through **kwargs to SpeechBrain's front end.
    frontend = parameters(locate(CLASSES["ConvolutionFrontEnd"]))
    assert {"causal", "input_shape", "strides"} <= set(frontend)


def test_a_constructor_with_arguments_is_bound_to_them():
    activation = {"constructor": "GELU", "approximate": "tanh"}
    config = {**TRANSFORMER, "conformer_activation": activation}
    module = build({"m": config}, ["m"], "a.json")["m"]
    activations = [x for x in module.modules() if isinstance(x, torch.nn.GELU)]
    assert activations and all(x.approximate == "tanh" for x in activations)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"tgt_vocab": None}, "m.tgt_vocab: must be int, got None"),
        ({"nheads": 2}, "m: unknown argument of HyperConformerASR 'nheads'; did you"),
        ({"activation": {"constructor": "GELU", "x": 1}}, "m.activation: unknown arg"),
        ({"activation": {"constructor": "GELU", "approximate": 1}}, "approximate: mu"),
        ({"dropout": "0.1"}, "m.dropout: must be a finite number, got '0.1'"),
        ({"mixer_options": {"tied": "yes"}}, "option 'tied' .* must be bool"),
    ],
)
def test_wrong_arguments_are_named_with_their_place(change, message):
    with pytest.raises(ValueError, match=f"^a.json: .*{message}"):
        build({"m": {**TRANSFORMER, **change}}, ["m"], "a.json")


def test_missing_arguments_are_named():
    config = {"class": "HyperConformerASR", "d_model": 8}
    message = "^a.json: m: HyperConformerASR needs tgt_vocab, input_size$"
    with pytest.raises(ValueError, match=message):
        build({"m": config}, ["m"], "a.json")


def test_own_classes_are_imported_only_where_that_is_trusted():
    config = {"class": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    with pytest.raises(ValueError, match="m.class: unknown class 'torch.nn.Linear'"):
        build({"m": config}, ["m"], "a.json")
    assert build({"m": config}, ["m"], "a.json", trusted=True)["m"].out_features == 3
    config["class"] = "builtins.dict"
    with pytest.raises(ValueError, match="m: must be a torch.nn.Module"):
        build({"m": config}, ["m"], "a.json", trusted=True)


def test_trust_lifts_the_limit_of_numbers_but_not_of_json():
    text = {"version": 1, "tokenizer": "sentencepiece", "language_model": {"a": 10**9}}
    with pytest.raises(ValueError, match="a.json: language_model.a: numbers go from"):
        parse_config(json.dumps(text), "a.json")
    assert parse_config(json.dumps(text), "a.json", trusted=True) == text
    for wrong in (float("nan"), float("-inf"), 10**400):
        text["language_model"]["a"] = wrong
        with pytest.raises(ValueError, match="language_model.a: numbers go from"):
            parse_config(json.dumps(text), "a.json", trusted=True)


def test_only_named_sizes_may_be_larger():
    text = {"version": 1, "tokenizer": "sentencepiece"}
    for key, value in (("vocab_size", 65536), ("width", 16384)):
        parse_config(json.dumps({**text, "recognizer": {key: value}}), "a.json")
        with pytest.raises(ValueError, match=f"recognizer.{key}: numbers go from"):
            parse_config(json.dumps({**text, "recognizer": {key: value + 1}}), "a.json")


def test_a_budget_counts_what_is_made_on_the_cpu_by_name():
    make = functools.partial(torch.empty, 1000, device="cpu")
    with MemoryBudget(5000, 10), torch.device("meta"):
        assert make().device.type == "cpu"
        with pytest.raises(ValueError, match="more than 5000 bytes or 10 tensors"):
            make()
