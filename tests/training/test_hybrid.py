"""A run whose layers have different mixers: checkpoints, model folder, measures."""

import json

import pytest

from hyperconformer.hub.folder import load_model

HYBRID = [
    "--num_encoder_layers=2",
    "--attention_type={from: hypermixing, last: RoPEMHA}",
    "--mixer_options={hypermixing: {tied: true}}",
]


@pytest.fixture(scope="module")
def trained(train_tiny, printed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    assert train_tiny(folder, *HYBRID) == 0, printed(folder)
    return folder


def test_the_model_folder_says_which_layer_has_which_mixer(trained):
    config = json.loads((trained / "model/config.json").read_text())
    transformer = config["recognizer"]["transformer"]
    assert transformer["attention_type"] == {"from": "hypermixing", "last": "RoPEMHA"}
    assert transformer["mixer_options"] == {"hypermixing": {"tied": True}}
    modules, _ = load_model(trained / "model", ("extractor", "recognizer"))
    first, last = modules["recognizer"].transformer.encoder.layers
    assert type(first.mha_layer).__name__ == "MultiHeadHyperMixing"
    assert type(last.mha_layer).__name__ == "RoPEMHA"


def test_parameters_and_cost_are_those_of_the_model(trained):
    results = json.loads((trained / "results.json").read_text())
    modules, _ = load_model(trained / "model", ("extractor", "recognizer"))
    counted = sum(p.numel() for p in modules["recognizer"].parameters())
    assert results["parameters"] == counted
    assert results["macs_per_audio_s"] > 0


def test_the_run_goes_on_only_with_the_same_mixers(trained, train_tiny, printed):
    assert train_tiny(trained, *HYBRID, "--number_of_epochs=3") == 0, printed(trained)
    assert "Loading a checkpoint" in printed(trained)
    other = "--attention_type=[RoPEMHA, hypermixing]"
    assert train_tiny(trained, *HYBRID, other) == 1
    assert "belong to a run with other settings: attention_type" in printed(trained)
