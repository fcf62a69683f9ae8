#!/usr/bin/env python3
"""Make a small model folder of a training run: half precision, with an n-gram model.

``python recipes/LibriSpeech/publish.py RUN NGRAM_FOLDER MODEL --lm-weight 0.6
--word-bonus 1`` takes the weights from the model folder of RUN, and ``lm.bin`` and
``words.txt`` from NGRAM_FOLDER (see make_ngram.py). The feature statistics stay in
single precision.
"""

import argparse
import json
import pathlib
import shutil
import sys

from safetensors.torch import load_file, save_file

from hyperconformer import ASR
from hyperconformer.hub.folder import (
    CONFIG_FILE,
    KENLM_FILE,
    SPEECHBRAIN_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    WORDS_FILE,
    find_model,
)


def main(options):
    """Write the folder and load it."""
    source, target = find_model(options.run), pathlib.Path(options.model)
    ngram = pathlib.Path(options.ngram)
    target.mkdir(parents=True, exist_ok=True)
    for name in (SPEECHBRAIN_FILE, TOKENIZER_FILE):
        shutil.copyfile(source / name, target / name)
    for name in (KENLM_FILE, WORDS_FILE):
        shutil.copyfile(ngram / name, target / name)
    weights = {
        name: weight if name.startswith("extractor.") else _halve(name, weight)
        for name, weight in load_file(source / WEIGHTS_FILE).items()
    }
    save_file(weights, target / WEIGHTS_FILE)
    config = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    config["ngram"] = {
        "lm_weight": options.lm_weight,
        "word_bonus": options.word_bonus,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (target / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    ASR.from_hparams(source=target, trusted=True)
    for file in sorted(target.iterdir()):
        print(f"{file} {file.stat().st_size / 1e6:.2f} MB")


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
    parser.add_argument("--lm-weight", type=float, required=True)
    parser.add_argument("--word-bonus", type=float, required=True)
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"publish.py: {error}")
