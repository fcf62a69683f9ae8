"""Graphs of whole utterances say what PyTorch says."""

import numpy as np
import pytest
import torch
from export.conftest import session
from streaming_model import streaming_config

from hyperconformer.export.graph import make_optional, to_onnx
from hyperconformer.export.offline import OfflineGraph
from hyperconformer.mixers.registry import list_mixers

pytestmark = pytest.mark.integration

# How many frames, or chunks of frames, they take depends on the length in steps.
REFUSED = {"gated_deltanet", "mixture_of_attention"}
BATCHES = [(8001, [0.5, 1.0, 0.2]), (16000, [1.0]), (30011, [1.0, 0.7])]


def assert_like_pytorch(runtime, extractor, recognizer):
    for samples, relative in BATCHES:
        wavs, relative = (
            0.1 * torch.randn(len(relative), samples),
            torch.tensor(relative),
        )
        lengths = (relative * samples).round().long()
        with torch.no_grad():
            expected = recognizer(*extractor(wavs, relative))
            heads = [expected.ctc]
            if recognizer.phones:
                heads.append(recognizer.phone_log_probs(expected.encoded))
        tokens, frames, *phones = runtime.run(
            None, {"samples": wavs.numpy(), "lengths": lengths.numpy()}
        )
        assert frames.tolist() == expected.lengths.tolist()
        for got, wanted in zip((tokens, *phones), heads, strict=True):
            for row, count in enumerate(frames):
                worst = np.abs(got[row, :count] - wanted[row, :count].numpy()).max()
                assert worst < 1e-4


def test_onnx_runtime_says_what_pytorch_says(utterances):
    graph, _, runtime = utterances
    assert_like_pytorch(runtime, graph.extractor, graph.recognizer)


def test_lengths_may_be_left_out(utterances):
    _, _, runtime = utterances
    assert [entry.name for entry in runtime.get_inputs()] == ["samples"]
    wavs = 0.1 * np.random.default_rng(0).normal(size=(2, 12000)).astype("f4")
    lengths = np.array([12000, 12000])
    expected, frames, _ = runtime.run(None, {"samples": wavs, "lengths": lengths})
    got, got_frames, _ = runtime.run(None, {"samples": wavs})
    assert got_frames.tolist() == frames.tolist() == [19, 19]
    assert np.array_equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_is_exported(mixer, tmp_path):
    torch.manual_seed(1)
    config = streaming_config(attention_type=mixer, num_encoder_layers=1)
    modules = config["extractor"], config["recognizer"]
    if mixer in REFUSED:
        with pytest.raises(ValueError, match="PyTorch cannot export this model"):
            to_onnx(OfflineGraph(*modules))
        return
    model = to_onnx(OfflineGraph(*modules))
    make_optional(model, "lengths", "samples")
    assert_like_pytorch(session(model, tmp_path / "m.onnx"), *modules)


class Branching(torch.nn.Module):
    """What depends on the values of its inputs."""

    inputs = outputs = ("x",)

    def forward(self, x):
        return x if x.sum() > 0 else -x

    def example(self):
        return (torch.ones(2),)

    def dynamic_shapes(self):
        return None


def test_what_cannot_be_recorded_says_why():
    with pytest.raises(
        ValueError, match="PyTorch cannot export this model: .*[Gg]uard"
    ):
        to_onnx(Branching())
