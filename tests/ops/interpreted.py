"""Running Triton kernels on the CPU, under Triton's interpreter.

The interpreter must be asked for before Triton is imported, and once it is, nothing
compiles. So what needs it are functions ``check_*`` of a test file, which
:func:`run_checks` runs in a second process. The fixtures are for those; a test file
imports them by name.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from triton import language as tl
from triton.runtime import interpreter

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
def round_to_nearest(monkeypatch):
    """Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds it."""
    convert = interpreter._convert_float

    def convert_float(data, source, target, rounding_mode):
        if source != tl.float32 or target != tl.bfloat16:
            return convert(data, source, target, rounding_mode)
        data = torch.from_numpy(np.ascontiguousarray(data))
        return data.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert_float)


@pytest.fixture(autouse=True)
def prepare_once_a_launch(monkeypatch):
    """Triton's interpreter prepares its language anew at each call of a helper.

    That takes most of its time; once a launch, for each module of helpers, does.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    prepared = set()

    def patch_once(function):
        module = id(function.__globals__)
        if module in prepared:
            return None
        prepared.add(module)
        return patch(function)

    def launch_afresh(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch_afresh)
