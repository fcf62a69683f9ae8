#!/usr/bin/env python3
"""Train and evaluate: ``python train.py hparams/hyperconformer.yaml [--key=value]``.

Any key of the YAML file can be overridden on the command line, and SpeechBrain's
run options (``--device``, ``--precision``, ...) work as everywhere else. A file
whose key ``task`` is ``language_model`` trains a language model.
"""

import argparse
import dataclasses
import importlib
import math
import os
import sys

import speechbrain as sb
import torch
from ruamel.yaml import YAML

from hyperconformer.cli.console import run_command

# What the key `task` may say, and whose function `train` does it.
TASKS = {
    "asr": "hyperconformer.training.asr",
    "language_model": "hyperconformer.training.language_model",
}


def parse(arguments):
    """Parse the command line as SpeechBrain does, which takes whole minutes only."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_interval_minutes", type=minutes)
    own, others = parser.parse_known_args(arguments)
    config_file, run_options, overrides = sb.parse_arguments(others)
    if own.ckpt_interval_minutes is not None:
        run_options = dataclasses.replace(
            run_options,
            ckpt_interval_minutes=own.ckpt_interval_minutes,
            overridden_args=run_options.overridden_args | {"ckpt_interval_minutes"},
        )
    return config_file, run_options, overrides


def minutes(text):
    """A number of minutes, as text."""
    number = float(text)
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"expected minutes, got {text}")
    return number


def main(arguments):
    """Run what the command line asks for."""
    # Where files of the user's own lie, for !name: and !new:.
    sys.path.append(os.getcwd())
    config_file, run_options, overrides = parse(arguments)
    from hyperconformer.config import read_config
    from hyperconformer.core.devices import find_device
    from hyperconformer.core.messages import unknown

    if run_options.device is not None:
        find_device(run_options.device)
    config = YAML().load(read_config(config_file, overrides))
    task = config.get("task", "asr")
    if task not in TASKS:
        raise ValueError(f"{config_file}: {unknown('task', task, sorted(TASKS))}")
    if not torch.cuda.is_available():
        run_options = dataclasses.replace(
            run_options,
            distributed_backend="gloo",
            overridden_args=run_options.overridden_args | {"distributed_backend"},
        )
    sb.utils.distributed.ddp_init_group(run_options)  # only under torchrun
    importlib.import_module(TASKS[task]).train(config_file, run_options, overrides)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A process that ends while the group's threads run is now and then aborted.
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run_command("train.py", main, sys.argv[1:]))
