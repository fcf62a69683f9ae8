"""Running Triton kernels on the CPU, under Triton's interpreter.

The interpreter must be asked for before Triton is imported, and once it is, nothing
compiles. So what needs it are functions ``check_*`` of a test file, which
:func:`run_checks` runs in a second process. The fixtures are for those; a test file
imports them by name.
"""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import interpreter

MARKERS = ["not slow", pytest.param("slow", marks=pytest.mark.slow)]


def run_checks(file, marker):
    """Run the checks of a file that a marker expression selects."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=check_*"]
        + ["-p", "no:cacheprovider", "-m", marker, file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def round_to_nearest():
    """As a GPU rounds to bfloat16."""
    with interpreter.rounding_to_nearest():
        yield


@pytest.fixture(autouse=True)
def prepare_once_a_launch():
    """The interpreter is faster then."""
    with interpreter.preparing_once_a_launch():
        yield
