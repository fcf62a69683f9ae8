#!/usr/bin/env python3
"""Make a small model folder of a training run: half precision, with an n-gram model.

``python recipes/LibriSpeech/publish.py RUN NGRAM_FOLDER MODEL --lm-weight 0.6
--word-bonus 1`` takes the weights from the model folder of RUN, and ``lm.bin`` and
``words.txt`` from NGRAM_FOLDER (see make_ngram.py). The feature statistics stay in
single precision. ``--checkpoint FOLDER`` takes the weights of one checkpoint of RUN in
place of the average, with the phone head that ``phone_ctc`` trained on the last layer.
"""

import argparse
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

from hyperconformer import ASR
from hyperconformer.hub.folder import (
    CONFIG_FILE,
    KENLM_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WORDS_FILE,
    find_model,
    write_settings,
)
from hyperconformer.training.resume import read_earlier_settings


def main(options):
    """Write the folder and load it."""
    source, target = find_model(options.run), pathlib.Path(options.model)
    ngram = pathlib.Path(options.ngram)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / TOKENIZER_FILE, target / TOKENIZER_FILE)
    for name in (KENLM_FILE, WORDS_FILE):
        shutil.copyfile(ngram / name, target / name)
    config = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    weights = load_file(source / WEIGHTS_FILE)
    if options.checkpoint:
        checkpoint = pathlib.Path(options.checkpoint)
        layers = config["recognizer"]["transformer"]["num_encoder_layers"]
        require_phones_at(layers, checkpoint)
        phones = take_checkpoint(checkpoint, weights)
        config["recognizer"]["phones"] = phones
    weights = {
        name: weight if name.startswith("extractor.") else _halve(name, weight)
        for name, weight in weights.items()
    }
    save_file(weights, target / WEIGHTS_FILE)
    config["ngram"] = {
        "lm_weight": options.lm_weight,
        "word_bonus": options.word_bonus,
    }
    model = ASR.from_hparams(source=source)
    write_settings(target, config, {"recognizer": model.recognizer})
    ASR.from_hparams(source=target, trusted=True)
    for file in sorted(target.iterdir()):
        print(f"{file} {file.stat().st_size / 1e6:.2f} MB")


def require_phones_at(last_layer, checkpoint):
    """Refuse a phone head of another layer: on the last it would say nonsense."""
    settings = read_earlier_settings(checkpoint.parent.parent, checkpoint.parent)
    layer = ((settings or {}).get("phone_ctc") or {}).get("layer")
    if layer != last_layer:
        raise ValueError(
            f"{checkpoint}: phone_ctc.layer must be the last layer, {last_layer}, got "
            f"{layer}"
        )


def take_checkpoint(checkpoint, weights):
    """Put a checkpoint's recogniser and phone head in place; return the phones.

    The phone head has a layer norm of its own on the last layer's output. It becomes
    one matrix on the encoder's normalised output, ``encoded = gain * x + shift``.
    """
    recognizer = torch.load(checkpoint / "recognizer.ckpt", weights_only=True)
    weights.update({f"recognizer.{name}": x for name, x in recognizer.items()})
    head = torch.load(checkpoint / "phone_ctc.ckpt", weights_only=True)
    norm = "transformer.encoder.norm.norm"
    gain, shift = recognizer[f"{norm}.weight"], recognizer[f"{norm}.bias"]
    matrix = head["head.weight"] * (head["norm.weight"] / gain)
    bias = head["head.bias"] + head["head.weight"] @ head["norm.bias"] - matrix @ shift
    weights["recognizer.phone_head.weight"] = matrix
    weights["recognizer.phone_head.bias"] = bias
    return (checkpoint / "phones.ckpt").read_text(encoding="utf-8").split("\n")


def _halve(name, weight):
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if not half.isfinite().all():
        raise ValueError(f"{name} holds values that half precision cannot hold")
    return half


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="output folder of the training run")
    parser.add_argument("ngram", help="folder of lm.bin and words.txt")
    parser.add_argument("model", help="the folder to write")
    parser.add_argument(
        "--checkpoint", help="one checkpoint of the run, with its phones"
    )
    parser.add_argument("--lm-weight", type=float, required=True)
    parser.add_argument("--word-bonus", type=float, required=True)
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"publish.py: {error}")
