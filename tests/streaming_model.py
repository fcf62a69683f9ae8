"""A tiny model of the streaming recipe, untrained."""

import pathlib

import torch
from hyperpyyaml import load_hyperpyyaml

from hyperconformer.config import read_config

STREAMING_YAML = (
    pathlib.Path(__file__).resolve().parents[1]
    / "hparams/hyperconformer_streaming.yaml"
)
TINY = {
    "d_model": 16,
    "nhead": 2,
    "d_ffn": 32,
    "num_encoder_layers": 2,
    "kernel_size": 7,
    "frontend_channels": [4, 8],
    "frontend_width": 160,
    "vocab_size": 12,
    "dropout": 0.0,
}


def streaming_config(**changes):
    """The loaded YAML file of a model that takes microseconds.

    Arguments
    ---------
    **changes
        Keys of the YAML file.

    Returns
    -------
    dict
        Among others ``extractor`` and ``recognizer``, in evaluation mode, with
        normalisation statistics that matter.
    """
    text = read_config(STREAMING_YAML)
    config = load_hyperpyyaml(text, {**TINY, **changes})
    config["extractor"].mean.copy_(-20 + torch.randn(80))
    config["extractor"].std.copy_(10 + torch.rand(80))
    for name in ("extractor", "recognizer"):
        config[name].eval()
    return config
