"""The recogniser under ``torch.compile``: one compilation for all lengths."""

import pathlib

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from torch._dynamo.utils import counters

from hyperconformer.config import read_config

RECIPE = pathlib.Path(__file__).parents[2] / "hparams/hyperconformer.yaml"


def loss(recognizer, features, lengths):
    # Padding means nothing: only real frames count.
    found = recognizer(features, lengths)
    frames = torch.arange(found.ctc.shape[1]) < found.lengths[:, None]
    return found.ctc[frames].square().mean()


@pytest.mark.integration
@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_other_lengths_and_batches_compile_nothing_anew(backend, tmp_path):
    torch.manual_seed(0)
    settings = {
        "output_folder": str(tmp_path),
        "num_encoder_layers": 1,
        "d_model": 16,
        "nhead": 2,
        "d_ffn": 32,
        "kernel_size": 7,
        "dropout": 0.0,
    }
    config = load_hyperpyyaml(read_config(RECIPE, settings), {"vocab_size": 30})
    recognizer = config["recognizer"].train()
    torch.compiler.reset()
    counters.clear()
    compiled = torch.compile(recognizer, backend=backend, dynamic=True)
    graphs = []
    for batch, frames in ((4, 150), (3, 211), (2, 398), (6, 90)):
        features = torch.randn(batch, frames, 80)
        lengths = torch.full((batch,), frames)
        lengths[0] -= 40
        weights = list(recognizer.parameters())
        expected = loss(recognizer, features, lengths)
        wanted = torch.autograd.grad(expected, weights)
        got = loss(compiled, features, lengths)
        gradients = torch.autograd.grad(got, weights)
        assert abs(got - expected) < 1e-4 * expected.abs()
        scale = max(gradient.abs().max() for gradient in wanted)
        for mine, its in zip(gradients, wanted):
            assert (mine - its).abs().max() < 1e-3 * scale
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    assert graphs[0] > 0
    assert len(set(graphs)) == 1
