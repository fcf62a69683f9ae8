"""The command ``hyperconformer``, made of one module for each of its commands.

A command's module has ``add_parser(commands)``, which declares its options and sets
``run``, what is called with them. It imports what is slow to load, torch for
instance, inside its functions.
"""

import argparse
import sys
import warnings

from hyperconformer import __version__
from hyperconformer.cli import (
    ablate,
    convert,
    evaluate,
    export,
    info,
    mixers,
    page,
    read_aloud,
    serve,
    shards,
    train,
    transcribe,
    verify,
)
from hyperconformer.cli.console import run_command

# In the order of `hyperconformer --help`.
COMMANDS = (
    transcribe,
    serve,
    evaluate,
    train,
    ablate,
    convert,
    export,
    verify,
    page,
    shards,
    read_aloud,
    mixers,
    info,
)


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        The command line without the program; None takes the real one.

    Returns
    -------
    int
        Exit code: 0 done, 1 an input failed; others as
        :func:`hyperconformer.cli.console.run_command`.
    """
    return run_command("hyperconformer", _main, arguments)


def _main(arguments):
    parser = argparse.ArgumentParser(
        prog="hyperconformer", description="Speech recognition with HyperConformer."
    )
    parser.add_argument(
        "--version", action="version", version=f"hyperconformer {__version__}"
    )
    # A command that sets it gets the arguments that it has not declared, as `extra`.
    parser.set_defaults(takes_extra=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    options, extra = parser.parse_known_args(arguments)
    if extra and not options.takes_extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    options.extra = extra
    options.extra = extra
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return options.run(options)


def _show_warning(message, category, filename, line, file=None, text=None):
    """Print our own warnings without the line of code that they are from."""
    shown = f"hyperconformer: {message}\n"
    if not category.__module__.startswith("hyperconformer."):
        shown = warnings.formatwarning(message, category, filename, line, text)
    sys.stderr.write(shown)


if __name__ == "__main__":
    sys.exit(main())
