"""What figures depend on: versions, threads, processor, commit."""

import functools
import pathlib
import platform
import re
import subprocess
from importlib import metadata

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(threads):
    """Columns of every row of results.

    Arguments
    ---------
    threads : int
        That compute.

    Returns
    -------
    dict of str to str or int
    """
    return {
        "threads": threads,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "processor": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "speechbrain": version("speechbrain"),
        "commit": commit(),
    }


@functools.cache
def commit():
    """That of the code which runs: results that it writes do not make it another."""
    command = ["git", "describe", "--always", "--dirty"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def processor():
    """The processor's name, as far as the system tells."""
    places = pathlib.Path("/proc/cpuinfo")
    if places.is_file():
        names = re.findall(r"^model name\s*: (.+)$", places.read_text(), re.MULTILINE)
        if names:
            return names[0].strip()
    return platform.processor() or platform.machine()


def version(package):
    """Of a package, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
