#!/usr/bin/env python3
"""Train and evaluate: ``python train.py hparams/hyperconformer.yaml [--key=value]``.

Any key of the YAML file can be overridden on the command line, and SpeechBrain's
run options (``--device``, ``--precision``, ...) work as everywhere else.
"""

import sys

import speechbrain as sb


def main(arguments):
    """Parse the command line as SpeechBrain does, and run."""
    config_file, run_options, overrides = sb.parse_arguments(arguments)
    from hyperconformer.training.run import train

    try:
        train(config_file, run_options, overrides)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
