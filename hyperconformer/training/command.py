"""The command that trains: a recipe, SpeechBrain's run options, and overrides."""

import argparse
import dataclasses
import importlib
import math
import os
import sys

import speechbrain as sb
import torch
from ruamel.yaml import YAML

from hyperconformer.audio import AudioError
from hyperconformer.config import read_config
from hyperconformer.core.devices import find_device
from hyperconformer.core.messages import unknown
from hyperconformer.core.shipped import find_recipe
from hyperconformer.core.store import StoreError

# What the key `task` may say, and whose function `train` does it.
TASKS = {
    "asr": "hyperconformer.training.asr",
    "language_model": "hyperconformer.training.language_model",
}


def train(arguments):
    """Train and evaluate as a command line says.

    Arguments
    ---------
    arguments : list of str
        A YAML file or the name of a shipped recipe; ``--key=value`` for any key of it;
        SpeechBrain's run options. A file whose key ``task`` is ``language_model``
        trains a language model.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is no such recipe, device, task or key, or a value cannot be used.
    AudioError, StoreError
        If audio cannot be read. Once it can, the same command continues the run.
    """
    # Where files of the user's own lie, for !name: and !new:.
    sys.path.append(os.getcwd())
    config_file, run_options, overrides = parse(arguments)
    config_file = find_recipe(config_file)
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
    try:
        importlib.import_module(TASKS[task]).train(config_file, run_options, overrides)
    except (AudioError, StoreError) as error:
        # A loader's process puts its traceback before the message.
        reason = str(error).strip().rpartition(f"{type(error).__name__}: ")[2]
        raise type(error)(
            f"{reason}. Once this is mended, the same command continues the run"
        ) from error
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A process that ends while the group's threads run is now and then aborted.
        torch.distributed.destroy_process_group()


def parse(arguments):
    """Parse the command line as SpeechBrain does, which takes whole minutes only.

    Arguments
    ---------
    arguments : list of str
        As for :func:`train`.

    Returns
    -------
    config_file : str
    run_options : speechbrain.utils.run_opts.RunOptions
    overrides : str
        YAML.
    """
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
