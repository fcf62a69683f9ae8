"""C++ kernels for CPUs, compiled on the machine that runs them, when first needed.

Like Triton's kernels, and for the same reason: they are made for the processor at
hand. A library is compiled once for each source, compiler and kind of processor, and
kept in ``~/.cache/hyperconformer`` (``$XDG_CACHE_HOME/hyperconformer``). The compiler
is ``$CXX`` or ``c++``; without one, operators take their torch path.

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
import shlex
import subprocess
import tempfile

import torch

logger = logging.getLogger(__name__)

HEADERS = pathlib.Path(__file__).parent

FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp")

# The OpenMP of torch, loaded already, is to be found: another one would have threads
# of its own. So the library is linked without -fopenmp.
LINK_FLAGS = ("-shared",)


def load(source):
    """The library of a C++ file, compiled if it is not kept yet.

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
        If there is no compiler, it fails, or its result cannot be kept or loaded; the
        message says what was called and what it answered.
    """
    name = f"{source.parent.name}-{source.stem}-{_key(source)}.so"
    library = _cache_folder() / name
    if not library.exists():
        _compile(source, library)
    return ctypes.CDLL(str(library))


def load_if_possible(source):
    """The library of a C++ file or None; why not is logged once.

    Arguments
    ---------
    source : pathlib.Path
        As in :func:`load`.

    Returns
    -------
    ctypes.CDLL or None
    """
    return _attempt(source)[0]


def why_not(source):
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


def why_not_these(tensors, dtypes):
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
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "cannot be compiled or traced"
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return f"needs tensors on a CPU, got {tensor.device}"
        # A subclass may have no memory of its own.
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return f"needs plain tensors, got {type(tensor).__name__}"
        if tensor.dtype not in dtypes:
            return f"computes in float32, got {tensor.dtype}"
    return None


def address(tensor):
    """Where a tensor's memory begins, for a ``ctypes.c_void_p``; None for None."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _attempt(source):
    """(library, None) or (None, reason)."""
    try:
        return load(source), None
    except OSError as error:
        name = f"{source.parent.name}/{source.name}"
        logger.warning(
            "%s is not compiled, slower torch operations do its work: %s", name, error
        )
        return None, f"needs {name}, which is not compiled: {error}"


def _compiler():
    return shlex.split(os.environ.get("CXX") or "c++")


def _cache_folder():
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "hyperconformer"


def _key(source):
    """A name for all that the library depends on.

    The predefined macros tell the compiler's version and the processor's instructions.
    """
    macros = _call([*_compiler(), *FLAGS, "-dM", "-E", "-x", "c++", os.devnull])
    headers = [header.read_bytes() for header in sorted(HEADERS.glob("*.h"))]
    flags = " ".join([*FLAGS, *LINK_FLAGS]).encode()
    text = b"\0".join([source.read_bytes(), *headers, macros, flags])
    return hashlib.sha256(text).hexdigest()[:16]


def _compile(source, library):
    """Compile and link beside the place, then move there: never half a library."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        parts = pathlib.Path(folder, "object.o"), pathlib.Path(folder, "library.so")
        include = f"-I{HEADERS}"
        _call([*_compiler(), *FLAGS, include, "-c", str(source), "-o", str(parts[0])])
        _call([*_compiler(), *LINK_FLAGS, str(parts[0]), "-o", str(parts[1])])
        os.replace(parts[1], library)


def _call(command):
    """What a command prints.

    Raises
    ------
    OSError
        If it cannot be called or fails.
    """
    finished = subprocess.run(command, capture_output=True)
    if finished.returncode:
        answer = finished.stderr.decode(errors="replace").strip()
        raise OSError(f"{shlex.join(command)} failed: {answer[:2000]}")
    return finished.stdout
