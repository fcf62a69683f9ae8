"""Files that are whole or not there."""

import os
import pathlib


def write_atomically(path: pathlib.Path, content: bytes):
    """Write a file atomically: readers find all of it or nothing.

    Arguments
    ---------
    path : pathlib.Path
        The file; its folder is made if absent.
    content : bytes
        The content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
