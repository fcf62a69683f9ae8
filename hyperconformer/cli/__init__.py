"""The command line."""

from hyperconformer.cli.main import main

__all__ = ["main"]
