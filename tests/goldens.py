"""The numeric goldens: reference outputs and gradients in float64."""

import json

import numpy as np
import torch


def load_golden(folder, name, dtype=torch.float64):
    """Read one case.

    Arguments
    ---------
    folder : pathlib.Path
        The folder of ``.npz`` files.
    name : str
        The case.
    dtype : torch.dtype
        Floating type of the tensors.

    Returns
    -------
    config : dict
        Constructor and call arguments of the reference.
    arrays : dict of str to torch.Tensor
        Under the names of the file: ``in/x``, ``param/...``, ``out/y``, ``grad/...``.
    """
    with np.load(folder / f"{name}.npz") as data:
        config = json.loads(str(data["config"]))
        arrays = {key: torch.from_numpy(data[key]) for key in data if key != "config"}
    return config, {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in arrays.items()
    }


def section(arrays, prefix):
    """The arrays under a prefix, with the prefix taken off."""
    return {
        key[len(prefix) + 1 :]: value
        for key, value in arrays.items()
        if key.startswith(prefix + "/")
    }


def relative_error(got, expected):
    """Largest absolute difference over the largest expected magnitude."""
    scale = expected.abs().max().clamp(min=1e-30)
    return ((got.double() - expected.double()).abs().max() / scale).item()
