"""``python -m benchmarks.recipe_memory``: what LibriSpeech's recipes keep for backward.

Bytes of every tensor that autograd keeps between the forward and the backward pass of a
recipe's model, weights apart, over the seconds of audio in the batch.
"""

import pathlib
import tempfile

import torch
from hyperpyyaml import load_hyperpyyaml

from hyperconformer.config import read_config
from hyperconformer.training.results import kept_bytes

HPARAMS = pathlib.Path(__file__).resolve().parents[1] / "recipes/LibriSpeech/hparams"
RECIPES = ("hyperconformer_8M", "hyperconformer_22M", "conformer_baseline")
UTTERANCES, DURATION_S, TOKENS = 2, 10, 35


def recipe_bytes(config):
    """Bytes kept by a forward pass of the recogniser with its losses, float32."""
    recognizer = config["recognizer"].train()
    frames = 100 * DURATION_S + 1
    features = torch.randn(UTTERANCES, frames, 80)
    lengths = torch.full((UTTERANCES,), frames)
    tokens = torch.randint(3, config["vocab_size"], (UTTERANCES, TOKENS))
    whole = torch.ones(UTTERANCES)

    def forward():
        output = recognizer(features, lengths, tokens)
        config["ctc_cost"](output.ctc, tokens, output.relative_lengths, whole)
        config["seq_cost"](output.seq, tokens, whole)

    return kept_bytes(forward, recognizer.parameters())


def main():
    """Print a line a recipe."""
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            places = {"data_folder": "", "output_folder": folder}
            config = load_hyperpyyaml(read_config(HPARAMS / f"{name}.yaml", places))
        mib = recipe_bytes(config) / 2**20
        print(f"{name:20} {mib / UTTERANCES / DURATION_S:6.1f} MiB a second of audio")


if __name__ == "__main__":
    main()
