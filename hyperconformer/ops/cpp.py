"""C++ kernels for CPUs, compiled on the machine that runs them, when first needed.

Like Triton's kernels, and for the same reason: they are made for the processor at
hand. A library is compiled once for each source, compiler and kind of processor, and
kept in ``~/.cache/hyperconformer`` (``$XDG_CACHE_HOME/hyperconformer``). The compiler
is ``$CXX`` or ``c++``; without one, operators take their torch path. A wheel may bring
libraries for the usual processors, which are used before anything is compiled.

torch.utils.cpp_extension is not used: it needs ninja, compiles torch's headers for half
a minute, knows nothing of the processor in its cache (homes are shared in clusters),
and a run that is killed while it compiles leaves a lock on which the next one waits
for ever.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import subprocess

import torch
from torch.autograd.function import once_differentiable

from hyperconformer.core.recording import is_recorded
from hyperconformer.ops.compiling import (
    HEADERS,
    LINK_FLAGS,
    TARGETS,
    built_library,
    call,
    compile_library,
    compiler,
    flags,
)

logger = logging.getLogger(__name__)

PLAIN = (torch.Tensor, torch.nn.Parameter)


def load(source):
    """The library of a C++ file, compiled if there is none yet.

    Arguments
    ---------
    source : pathlib.Path
        The file; of this package it may include the headers beside this module.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    OSError
        If the library has to be compiled and there is no compiler, compilation fails,
        or the result cannot be written or loaded. The message has the command and its
        error output.
    """
    for target in _targets():
        library = _open(built_library(source, target))
        if library is not None:
            return library
    kept = _cache_folder() / f"{source.parent.name}-{source.stem}-{_key(source)}.so"
    library = _open(kept)
    if library is not None:
        return library
    compile_library(source, kept)
    return ctypes.CDLL(str(kept))


def unsupported_reason(source):
    """Why the library of a C++ file cannot be had.

    Arguments
    ---------
    source : pathlib.Path
        As in :func:`load`.

    Returns
    -------
    str or None
        The reason, or None if it can.
    """
    return _attempt(source)[1]


def unsupported_tensors(tensors, dtypes):
    """Why no C++ kernel can take some tensors.

    Arguments
    ---------
    tensors : iterable of torch.Tensor or None
        The arguments.
    dtypes : tuple of torch.dtype
        Those that the kernel takes.

    Returns
    -------
    str or None
        The reason, or None if it can.
    """
    if _is_watched():
        return "does not run under torch.compile, tracing, torch.func or modes"
    for tensor in tensors:
        if tensor is None:
            continue
        if not tensor.is_cpu:
            return f"needs tensors on a CPU, got {tensor.device}"
        if tensor.is_nested or tensor.layout is not torch.strided:
            return "needs tensors that are neither nested nor sparse"
        # A subclass may have no memory of its own, a negated view other numbers in it.
        if type(tensor) not in PLAIN or tensor.is_neg():
            return f"needs plain tensors, got {type(tensor).__name__}"
        if tensor.numel() == 0:
            return "needs at least one element"
        if tensor.dtype not in dtypes:
            return f"computes in float32, got {tensor.dtype}"
    return None


def unsupported_mask(mask, tokens):
    """Why no C++ kernel can take a padding mask.

    Arguments
    ---------
    mask : torch.Tensor or None
        True = padding.
    tokens : torch.Tensor
        (B, T, ...), for which it is (B, T) where the kernels take it.

    Returns
    -------
    str or None
        The reason, or None if it can.
    """
    if mask is None:
        return None
    if mask.shape != tokens.shape[:2]:
        expected = tuple(tokens.shape[:2])
        return f"needs a mask of shape {expected}, got {tuple(mask.shape)}"
    return unsupported_tensors([mask], (torch.bool,))


def _is_watched():
    """Whether somebody else than autograd has to see every operation."""
    return (
        is_recorded()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def once(backward):
    """A backward of an autograd function that cannot be differentiated again.

    ``once_differentiable`` alone would leave out the second order without a word,
    where the gradient that comes in does not require one.

    Arguments
    ---------
    backward : callable
        Of (ctx, *gradients).

    Returns
    -------
    callable
        The same, but a RuntimeError where a graph of gradients is asked for.
    """
    differentiable_once = once_differentiable(backward)

    @functools.wraps(backward)
    def checked(ctx, *gradients):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the C++ kernels have no second derivatives (create_graph=True): "
                "HYPERCONFORMER_BACKEND=torch has"
            )
        # The kernels read memory as it is.
        return differentiable_once(ctx, *(g.resolve_neg() for g in gradients))

    return checked


def declare(source, arguments):
    """The library of a C++ file, its functions declared to return nothing.

    Arguments
    ---------
    source : pathlib.Path
        As in :func:`load`; its :func:`unsupported_reason` is None.
    arguments : dict of str to list
        The ctypes of each function's arguments.

    Returns
    -------
    ctypes.CDLL
    """
    library, _ = _attempt(source)
    for name, types in arguments.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return library


def address(tensor):
    """Where a tensor's memory begins, for a ``ctypes.c_void_p``; None for None."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _attempt(source):
    """(library, None) or (None, reason)."""
    try:
        return load(source), None
    # Also no home folder, a CXX that cannot be split, a compiler that hangs.
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        name = f"{source.parent.name}/{source.name}"
        logger.warning(
            "%s is not compiled, slower torch operations do its work: %s", name, error
        )
        return None, f"needs {name}, which is not compiled: {error}"


def _targets():
    """The processors of ``TARGETS`` whose libraries run here, the best first."""
    targets = TARGETS.get(platform.machine(), ())
    if platform.machine() != "x86_64":
        return targets
    known = ("AVX2", "AVX512")  # to torch, which may be held to less
    capability = torch.backends.cpu.get_cpu_capability()
    count = known.index(capability) + 1 if capability in known else 0
    return targets[:count][::-1]


def _open(library):
    """The library, or None where it is not there or damaged."""
    if library.exists():
        try:
            return ctypes.CDLL(str(library))
        except OSError as error:
            logger.warning("%s cannot be loaded, it is compiled: %s", library, error)
    return None


def _cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "hyperconformer"


def _key(source):
    """A name for all that the library depends on.

    The predefined macros tell the compiler's version and the processor's instructions.
    """
    macros = call([*compiler(), *flags(), "-dM", "-E", "-x", "c++", os.devnull])
    headers = [header.read_bytes() for header in sorted(HEADERS.glob("*.h"))]
    options = " ".join([*flags(), *LINK_FLAGS]).encode()
    text = b"\0".join([source.read_bytes(), *headers, macros, options])
    return hashlib.sha256(text).hexdigest()[:16]
