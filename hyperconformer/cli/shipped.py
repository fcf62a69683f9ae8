"""An option that prints the names of shipped YAML files."""

import argparse

from hyperconformer.core.shipped import describe


class PrintNames(argparse.Action):
    """Prints each name and what it stands for, and ends the program.

    Arguments
    ---------
    *args, **kwargs
        As ``argparse`` gives them.
    find : callable
        Returns a dict of names to YAML files.
    """

    def __init__(self, *args, find, **kwargs):
        super().__init__(*args, nargs=0, **kwargs)
        self.find = find

    def __call__(self, parser, *_):
        files = self.find()
        width = max(map(len, files))
        for name, file in files.items():
            print(f"{name:<{width}}  {describe(file)}")
        parser.exit()
