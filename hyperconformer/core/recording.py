"""Whether operations are recorded: compiled, exported or traced."""

import torch


def is_recorded():
    """Whether operations are recorded, to run again on other data.

    ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` do it. What tensors hold
    must then decide nothing.

    Returns
    -------
    bool
    """
    return torch.compiler.is_compiling() or is_exported()


def is_exported():
    """Whether what is recorded shall run where this package is not installed.

    Returns
    -------
    bool
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()
