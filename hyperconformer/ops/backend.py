"""Which of an operator's paths runs: ``reference``, ``torch``, ``cpp`` or ``triton``.

The argument ``backend`` of an operator, or else the environment variable
``HYPERCONFORMER_BACKEND``, forces a path; a mixer's forced path that cannot run raises.
Operators that are no mixers have a torch path and C++ kernels only, and take these
where they can, unless torch or the reference is asked for. Left to itself, an operator
takes its Triton kernels on the devices that they are compiled for in the tests, its
C++ kernels on CPUs, and torch elsewhere.
"""

import importlib.util
import os

import torch

from hyperconformer.core.recording import is_exported

BACKENDS = ("reference", "torch", "cpp", "triton")

COMPILED_FOR = ((8, 0), (9, 0))
"""Compute capabilities that the tests compile the kernels for.

On others they may need more shared memory than there is, so they run only if forced.
"""

_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def check_backend(backend):
    """Refuse a backend that does not exist.

    Arguments
    ---------
    backend : str or None
        One of ``BACKENDS``, or None for the environment's or the automatic choice.

    Returns
    -------
    str or None
        The same.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists the known ones.
    """
    if backend is not None and backend not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ValueError(f"unknown backend {backend!r}; known: {known}")
    return backend


def choose_backend(operator, backend, tokens, triton_reason, cpp_reason=None):
    """The path that an operator takes for these arguments.

    Arguments
    ---------
    operator : str
        Its name, for errors.
    backend : str or None
        What the caller forces.
    tokens : torch.Tensor
        One of the arguments, whose device decides.
    triton_reason : callable
        Without arguments: a str, why the kernels cannot take the arguments, or None
        if they can. It is asked only where Triton itself could run.
    cpp_reason : callable, optional
        The same of the C++ kernels, asked for tensors on a CPU. None: there are none.

    Returns
    -------
    str
        One of ``BACKENDS``.

    Raises
    ------
    ValueError
        If the forced backend is unknown or cannot run; the message says why.

    Example
    -------
    >>> choose_backend("sum", "torch", torch.zeros(1), lambda: "has no kernel")
    'torch'
    """
    if backend is None:
        backend = os.environ.get("HYPERCONFORMER_BACKEND") or None
    check_backend(backend)
    if backend is None:
        return _usual_backend(tokens.device, triton_reason, cpp_reason)
    reason = None
    if backend == "triton":
        reason = unsupported_device(tokens.device) or triton_reason()
    elif backend == "cpp":
        reason = cpp_reason() if cpp_reason else "does not exist"
    if reason:
        name = {"triton": "Triton", "cpp": "C++"}[backend]
        raise ValueError(f"the {name} backend of {operator} {reason}")
    return backend


def _usual_backend(device, triton_reason, cpp_reason):
    """The fastest path that is proven on a device; torch's for programs to export."""
    if is_exported():
        return "torch"
    if _is_proven(device) and not (unsupported_device(device) or triton_reason()):
        return "triton"
    if device.type == "cpu" and cpp_reason is not None and not cpp_reason():
        return "cpp"
    return "torch"


def takes_kernels(unsupported_reason):
    """Whether an operator that has only torch's path and a faster one on CPUs takes it.

    Arguments
    ---------
    unsupported_reason : callable
        Without arguments: a str, why the faster path cannot take the arguments, or
        None if it can.

    Returns
    -------
    bool
        False where ``HYPERCONFORMER_BACKEND`` asks for torch or the reference.
    """
    forced = check_backend(os.environ.get("HYPERCONFORMER_BACKEND") or None)
    return forced not in ("torch", "reference") and unsupported_reason() is None


def _is_proven(device):
    """Whether the kernels are known to fit a device."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) in COMPILED_FOR


def unsupported_device(device):
    """Why no Triton kernel can run on a device, whatever it computes.

    Arguments
    ---------
    device : torch.device
        Where the tensors are.

    Returns
    -------
    str or None
        The reason, or None if kernels can run.
    """
    if not _TRITON_IS_INSTALLED:
        return "needs the package triton, which is not installed"
    if is_interpreted():
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"needs a CUDA device, got tensors on {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"needs compute capability 8.0, got {capability[0]}.{capability[1]}"
    return None


def is_interpreted():
    """Whether Triton's interpreter runs the kernels, as TRITON_INTERPRET=1 asks.

    Returns
    -------
    bool
    """
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
