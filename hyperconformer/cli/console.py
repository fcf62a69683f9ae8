"""How a command ends: exit codes, and one line for what a user can mend."""

import os
import sys

from hyperconformer.core.extras import MissingExtraError

# As the shell reports a program that SIGPIPE, or SIGINT, has ended.
CLOSED_PIPE, INTERRUPTED = 141, 130


def run_command(name, command, *arguments):
    """Run a command, and say in a line why it failed.

    Arguments
    ---------
    name : str
        Begins the line.
    command : callable
        Does the work and returns an exit code; None = 0.
    *arguments
        Its arguments.

    Returns
    -------
    int
        Exit code: the command's; 1 after an error; 141 where nobody reads the output
        any more, as after ``| head``; 130 after Ctrl-C.

    Example
    -------
    >>> run_command("program", int, "3")
    3
    """
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed before the start, as by >&-
            setattr(sys, stream, open(os.devnull, "w"))
    try:
        try:
            code = command(*arguments)
        except SystemExit:  # as after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # a full disk may show only now
        return code or 0
    except BrokenPipeError:
        _discard(sys.stdout)
        _discard(sys.stderr)
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # As other programs say it, without Python's number.
        known = error.filename is not None and error.strerror
        reason = f"{error.filename}: {error.strerror}" if known else error
        print(f"{name}: {reason}", file=sys.stderr)
    except (ValueError, MissingExtraError) as error:
        print(f"{name}: {error}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
    return 1


def _discard(stream):
    """Let what is still buffered go nowhere: Python writes it when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
