#!/usr/bin/env python3
"""Train and evaluate: ``python train.py hparams/hyperconformer.yaml [--key=value]``.

The same as ``hyperconformer train``, in a clone of the repository.
"""

import sys

from hyperconformer.cli.console import run_command
from hyperconformer.training.command import train

if __name__ == "__main__":
    sys.exit(run_command("train.py", train, sys.argv[1:]))
