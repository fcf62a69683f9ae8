"""Whether operations are recorded: compiled, exported or traced."""

import functools
from collections.abc import Callable
from typing import Any

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


def kept(maxsize: int) -> Callable:
    """Keep a function's tensors for later calls, but no tensor of a recording.

    That one holds no numbers, and would turn up in later calls.

    Arguments
    ---------
    maxsize : int
        Results to keep, as :func:`functools.lru_cache`.

    Returns
    -------
    Callable
        A decorator.

    Example
    -------
    >>> @kept(maxsize=1)
    ... def ones(length):
    ...     return torch.ones(length)
    >>> ones(3) is ones(3)
    True
    """

    def decorate(function: Callable) -> Callable:
        cached = functools.lru_cache(maxsize)(function)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args) if is_recorded() else cached(*args)

        return call

    return decorate
