"""HyperPyYAML to data and back."""

import json

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from hyperconformer.hub.config import build
from hyperconformer.hub.hyperparams import from_hyperpyyaml, to_hyperpyyaml

KEYS = ("a", "b", "c", "d")


def test_values_are_what_hyperpyyaml_makes_of_them():
    text = (
        "a: {i: 3, f: 1.5, e: 1e-3, b: True, c: false, n: null, s: text, q: '3'}\n"
        "b: [(1, 2.5), '(1, 2)', (False, name), ()]\n"
        "c: &x {y: [1]}\nd: [*x, *x]\n"
    )
    for _ in range(2):  # HyperPyYAML changes how ruamel reads tuples
        ours = from_hyperpyyaml(text, KEYS)
        theirs = load_hyperpyyaml(text)
        # JSON has no tuples.
        assert ours == json.loads(json.dumps(theirs))
        assert ours["a"]["b"] is True and ours["a"]["q"] == "3"


def test_tags_become_names_of_the_tables():
    text = (
        "extractor: !new:speechbrain.lobes.features.Fbank\n  n_mels: 40\n"
        "recognizer: !new:hyperconformer.Recognizer\n"
        "  a: !name:torch.nn.GELU\n    approximate: tanh\n"
        "  b: !name:torch.nn.ReLU\n"
        "  c: !name:my_mixers.MeanMixer\n"
        "  d: !new:hyperconformer.integration.asr.HyperConformerASR\n"
        "optimizer: !apply:os.getcwd\n"
    )
    assert from_hyperpyyaml(text) == {
        "extractor": {"class": "Fbank", "n_mels": 40},
        "recognizer": {
            "class": "Recognizer",
            "a": {"constructor": "GELU", "approximate": "tanh"},
            "b": {"constructor": "ReLU"},
            "c": {"constructor": "my_mixers.MeanMixer"},
            "d": {"class": "HyperConformerASR"},
        },
    }


@pytest.mark.parametrize(
    "value,message",
    [
        ("!apply:os.getcwd", "extractor.x: '!apply:os.getcwd' cannot stand in a"),
        ("!include:a.yaml", "cannot stand"),
        ("!copy <a>", "cannot stand"),
        ("!ref <a>", "cannot stand"),
        ("!new:a.B [1, 2]", "extractor.x: arguments must have names"),
        ("!new:a.B (1, 2)", "arguments must have names"),
        ("!!python/object/apply:os.getcwd []", "cannot stand"),
        ("2020-01-01", "timestamp' cannot stand"),
        ("{1: 2}", "keys must be plain strings"),
        ("{[1]: 2}", "keys must be plain strings"),
        ("{<<: {a: 1}}", "keys must be plain strings"),
        ("&a {b: *a}", "is no model: too large"),
        ("[", "a.yaml is not valid YAML"),
    ],
)
def test_what_is_no_data_is_refused(value, message):
    text = f"extractor: !new:hyperconformer.FeatureExtractor\n  x: {value}\n"
    with pytest.raises(ValueError, match=message):
        from_hyperpyyaml(text, source="a.yaml")


def test_an_alias_bomb_is_refused():
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    text = "\n".join([*lines, "extractor: *a59"])
    with pytest.raises(ValueError, match="is no model: too large"):
        from_hyperpyyaml(text)


def test_there_and_back():
    config = {
        "sample_rate": 16000,
        "recognizer": {
            "class": "Recognizer",
            "numbers": [1, 2.5, 1e-5, 1e-12, 1e22, -0.0, True, None],
            "texts": ["", "on", "3", "null", "a: b", "# c", "\u00e9\n"],
            "nested": {"empty": {}, "none": [], "pairs": [{"a": [1]}, {"b": 2}]},
            "activation": {"constructor": "LeakyReLU", "negative_slope": 0.1},
            "own": {"constructor": "my_mixers.MeanMixer"},
        },
    }
    assert from_hyperpyyaml(to_hyperpyyaml(config)) == config


@pytest.mark.parametrize("has_decoder", [False, True])
def test_both_files_build_the_same_model(build_model_folder, has_decoder):
    folder = build_model_folder(decoder_layers=int(has_decoder))
    config = json.loads((folder / "config.json").read_text())
    text = (folder / "hyperparams.yaml").read_text()
    assert text == to_hyperpyyaml(config, has_decoder)
    assert ("EncoderDecoderASR" in text) == has_decoder
    names = ("extractor", "recognizer")
    torch.manual_seed(3)
    theirs = load_hyperpyyaml(text)
    torch.manual_seed(3)
    ours = build(config, names, "config.json")
    for name in names:
        assert repr(ours[name]) == repr(theirs[name])
        for key, value in ours[name].state_dict().items():
            assert torch.equal(value, theirs[name].state_dict()[key])


def test_a_language_models_text_has_nothing_for_recognisers():
    text = to_hyperpyyaml({"language_model": {"class": "TransformerLM", "vocab": 3}})
    assert list(YAML().load(text)) == ["language_model"]
