#!/usr/bin/env python3
"""Make a small model folder of a training run: half precision, with an n-gram model.

``python recipes/LibriSpeech/publish.py RUN NGRAM_FOLDER MODEL --lm-weight 0.6
--word-bonus 1`` takes the weights from the model folder of RUN, and ``lm.bin`` and
``words.txt`` from NGRAM_FOLDER (see make_ngram.py). The feature statistics stay in
single precision. ``--checkpoint FOLDER`` takes the weights of one checkpoint of RUN in
place of the average, with the phone head that ``phone_ctc`` trained on the last layer.
``--mean-with MODEL`` takes the mean of these weights and another model's, such as the
one that RUN began with.
``--prior-weight`` and ``--prior-split`` divide the phones' probabilities by a power of
their mean over a split. RUN may be a published model too.
"""

import argparse
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from speechbrain.utils.checkpoints import average_state_dicts
from tqdm import tqdm

from hyperconformer import ASR
from hyperconformer.audio import read_audio
from hyperconformer.corpora.librispeech import LAYOUT, SOURCE, list_utterances
from hyperconformer.corpora.manifest import require
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
    if (options.prior_weight is None) != (options.prior_split is None):
        raise ValueError("--prior-weight and --prior-split need each other")
    if options.prior_split is not None:
        require(pathlib.Path(options.prior_split), LAYOUT, SOURCE)
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
    if options.mean_with:
        weights = mean_of(weights, options.mean_with)
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
    asr = ASR.from_hparams(source=target, trusted=True)
    if options.prior_weight is not None:
        priors = mean_phone_probabilities(asr, pathlib.Path(options.prior_split))
        bias = asr.recognizer.phone_head.bias - options.prior_weight * priors.log()
        weights["recognizer.phone_head.bias"] = _halve("phone_head.bias", bias)
        save_file(weights, target / WEIGHTS_FILE)
    for file in sorted(target.iterdir()):
        print(f"{file} {file.stat().st_size / 1e6:.2f} MB")


def mean_of(weights, model):
    """The mean of weights and those of another model of the same form."""
    others = load_file(find_model(model) / WEIGHTS_FILE)
    differing = sorted(
        name
        for name in weights.keys() | others.keys()
        if getattr(weights.get(name), "shape", None)
        != getattr(others.get(name), "shape", None)
    )
    if differing:
        raise ValueError(
            f"--mean-with {model}: {len(differing)} weights of the two models differ "
            f"in shape, or one model lacks them: {', '.join(differing[:5])}"
        )
    learned = [
        name
        for name, weight in weights.items()
        if weight.is_floating_point() and not name.startswith("extractor.")
    ]
    mean = average_state_dicts(
        {name: one[name].float() for name in learned} for one in (others, weights)
    )
    return {**weights, **mean}


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


@torch.no_grad()
def mean_phone_probabilities(asr, split):
    """The phone head's priors: its mean probabilities over all frames of a split.

    EESEN (arXiv:1507.08240) divides probabilities by them: a search that has a language
    model should not be told twice how frequent phones are. The division changes nothing
    but the head's bias.

    Returns
    -------
    torch.Tensor
        (number of phones + 1,), the blank first.
    """
    if not asr.recognizer.phones:
        raise ValueError("--prior-weight needs a model with a phone head")
    files = [one.audio for one in list_utterances(split) if one.audio]
    if not files:
        raise FileNotFoundError(f"no audio in {split}, expected {LAYOUT}")
    total, frames = 0.0, 0
    for file in tqdm(files, desc="priors", unit="file"):
        samples = read_audio(file, asr.sample_rate_hz)[None]
        recognition = asr.recognizer(*asr.extractor(samples, torch.ones(1)))
        probabilities = asr.recognizer.phone_log_probs(recognition.encoded[0]).exp()
        total, frames = total + probabilities.sum(0), frames + len(probabilities)
    return total / frames


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
    parser.add_argument(
        "--mean-with",
        metavar="MODEL",
        help="take the mean with another model's weights",
    )
    parser.add_argument("--lm-weight", type=float, required=True)
    parser.add_argument("--word-bonus", type=float, required=True)
    parser.add_argument(
        "--prior-weight", type=float, help="power of the phones' priors, such as 0.3"
    )
    parser.add_argument(
        "--prior-split", help="folder of a split, over which the priors are measured"
    )
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"publish.py: {error}")
