#!/usr/bin/env python3
"""Train and evaluate: ``python train.py hparams/hyperconformer.yaml [--key=value]``.

Any key of the YAML file can be overridden on the command line, and SpeechBrain's
run options (``--device``, ``--precision``, ...) work as everywhere else. A file
whose key ``task`` is ``language_model`` trains a language model.
"""

import dataclasses
import importlib
import sys

import speechbrain as sb
import torch
from ruamel.yaml import YAML

from hyperconformer.console import run_command

# What the key `task` may say, and whose function `train` does it.
TASKS = {
    "asr": "hyperconformer.training.run",
    "language_model": "hyperconformer.training.language_model",
}


def main(arguments):
    """Parse the command line as SpeechBrain does, and run."""
    config_file, run_options, overrides = sb.parse_arguments(arguments)
    from hyperconformer.config import read_config
    from hyperconformer.devices import find_device
    from hyperconformer.registry import unknown

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
