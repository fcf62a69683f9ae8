#!/usr/bin/env python3
"""Let a trained model bring every recording to the level of its training set.

    python recipes/AN4/to_level.py AN4_FOLDER MODEL_FOLDER

A model trained with ``normalization: global`` on speech of many levels recognises all
of them, but not equally well. This sets ``normalization: level`` and shifts the mean of
the features by the mean level of the training set: the network does not change.
"""

import pathlib
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

from hyperconformer.audio import read_audio
from hyperconformer.corpora import prepare
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.hub.folder import read_settings, write_settings
from hyperconformer.model.level import utterance_level
from hyperconformer.transcribe.offline import ASR


def main(an4, model):
    """Measure the level, and rewrite settings and weights."""
    model = pathlib.Path(model)
    asr, settings = ASR.from_hparams(model), read_settings(model)
    extractor = asr.extractor
    if extractor.normalization != "global":
        raise ValueError(
            f"{model} has normalization {extractor.normalization!r}, expected 'global'"
        )
    extractor.mean.zero_(), extractor.std.fill_(1.0)
    with tempfile.TemporaryDirectory() as folder:
        rows = read_manifest(prepare("an4", an4, folder, hold_out=False)["train"])
    speech = (read_audio(row["wav"]).unsqueeze(0) for row in rows)
    levels = [utterance_level(*extractor(samples)) for samples in speech]
    mean_level = torch.cat(levels).mean()
    weights = load_file(model / "model.safetensors")
    weights["extractor.mean"] = weights["extractor.mean"] - mean_level
    save_file(weights, model / "model.safetensors")
    settings["extractor"]["normalization"] = "level"
    write_settings(model, settings, {"recognizer": asr.recognizer})
    print(f"{model}: mean level {mean_level:.2f} dB of {len(levels)} utterances")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"to_level.py: {error}")
