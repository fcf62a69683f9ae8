"""Calls of the command line."""

from hyperconformer.cli.main import main


def run(capsys, *arguments):
    """The exit code of ``hyperconformer ARGUMENTS``, its output and its errors."""
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err
