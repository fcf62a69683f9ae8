"""Triton's interpreter, which runs kernels on the CPU, mended for ours.

It must be asked for before Triton is imported (``TRITON_INTERPRET=1``). This module
imports Triton.
"""

import contextlib
from unittest import mock

import numpy as np
import torch
from triton import language as tl
from triton.runtime import interpreter


@contextlib.contextmanager
def rounding_to_nearest():
    """Triton's interpreter cuts float32 off to bfloat16, where a GPU rounds it."""
    convert = interpreter._convert_float

    def convert_float(data, source, target, rounding_mode):
        if source != tl.float32 or target != tl.bfloat16:
            return convert(data, source, target, rounding_mode)
        data = torch.from_numpy(np.ascontiguousarray(data))
        return data.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    with mock.patch.object(interpreter, "_convert_float", convert_float):
        yield


@contextlib.contextmanager
def preparing_once_a_launch():
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

    with (
        mock.patch.object(interpreter, "_patch_lang", patch_once),
        mock.patch.object(interpreter.GridExecutor, "__call__", launch_afresh),
    ):
        yield
