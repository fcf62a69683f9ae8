"""A run whose layers have different mixers, continued and logged for TensorBoard:
checkpoints, model folder, measures, curves."""

import importlib.util
import json

import pytest

from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.hub.folder import load_model

TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
HYBRID = [
    "--num_encoder_layers=2",
    "--attention_type={from: hypermixing, last: RoPEMHA}",
    "--mixer_options={hypermixing: {tied: true}}",
    f"--tensorboard={TENSORBOARD}",
]


@pytest.fixture(scope="module")
def trained(train_tiny, printed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    for epochs in (1, 2):
        more = [*HYBRID, f"--number_of_epochs={epochs}"]
        assert train_tiny(folder, *more) == 0, printed(folder)
    assert "Loading a checkpoint" in printed(folder)
    return folder


@pytest.mark.integration
def test_the_model_folder_says_which_layer_has_which_mixer(trained):
    config = json.loads((trained / "model/config.json").read_text())
    transformer = config["recognizer"]["transformer"]
    assert transformer["attention_type"] == {"from": "hypermixing", "last": "RoPEMHA"}
    assert transformer["mixer_options"] == {"hypermixing": {"tied": True}}
    modules, _ = load_model(trained / "model", ("extractor", "recognizer"))
    first, last = modules["recognizer"].transformer.encoder.layers
    assert type(first.mha_layer).__name__ == "MultiHeadHyperMixing"
    assert type(last.mha_layer).__name__ == "RoPEMHA"
    results = json.loads((trained / "results.json").read_text())
    counted = sum(p.numel() for p in modules["recognizer"].parameters())
    assert results["parameters"] == counted
    assert results["macs_per_audio_s"] > 0


@pytest.mark.integration
@pytest.mark.skipif(not TENSORBOARD, reason="TensorBoard is not installed")
def test_tensorboard_shows_the_run_and_its_continuation_as_one_curve(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    log = read_train_log(trained / "train_log.txt")
    for tag, column in (("loss/valid", "valid loss"), ("updates", "updates")):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2]
        # The text has three digits.
        assert [x.value for x in scalars] == pytest.approx(log[column], rel=5e-3)
