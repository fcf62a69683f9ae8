"""How the C++ kernels are compiled: for the processor at hand, or for a wheel.

``setup.py`` runs this file by itself: it imports nothing of the package.
"""

import os
import pathlib
import platform
import shlex
import subprocess
import tempfile

HEADERS = pathlib.Path(__file__).parent

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp")

# The OpenMP of torch, loaded already, is to be found: another one would have threads
# of its own. So the library is linked without -fopenmp.
LINK_FLAGS = ("-shared",)

# Processors that a wheel has libraries for, by machine, as `-march` names them.
TARGETS = {
    "x86_64": ("x86-64-v3", "x86-64-v4"),  # AVX2, AVX-512
    "aarch64": ("armv8-a",),  # NEON
}
NATIVE = "native"


def compiler():
    """``$CXX`` or ``c++``, in words."""
    return shlex.split(os.environ.get("CXX") or "c++")


def call(command):
    """What a command prints.

    Raises
    ------
    OSError
        If the command cannot be started or fails. The message has its error output.
    """
    finished = subprocess.run(command, capture_output=True, timeout=300)
    if finished.returncode:
        answer = finished.stderr.decode(errors="replace").strip()
        raise OSError(f"{shlex.join(command)} failed: {answer[:2000]}")
    return finished.stdout


def flags(target=NATIVE):
    """What the compiler is called with for a processor."""
    return [*FLAGS, f"-march={target}"]


def compile_library(source, library, target=NATIVE):
    """Compile and link beside the place, then move there: never half a library.

    Arguments
    ---------
    source : pathlib.Path
        A C++ file; it may include the headers beside this module.
    library : pathlib.Path
        Where the library goes.
    target : str
        The processor, as ``-march`` names it.

    Raises
    ------
    OSError
        As :func:`call`, or if the library cannot be written.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        parts = pathlib.Path(folder, "object.o"), pathlib.Path(folder, "library.so")
        include = f"-I{HEADERS}"
        command = [*compiler(), *flags(target), include, "-c", str(source)]
        call([*command, "-o", str(parts[0])])
        call([*compiler(), *LINK_FLAGS, str(parts[0]), "-o", str(parts[1])])
        os.replace(parts[1], library)


def built_library(source, target):
    """Where a wheel holds the library of a C++ file for a processor."""
    return source.with_name(f"{source.stem}-{target}.so")


def compile_for_wheel(folder):
    """Compile all kernels below a folder for every processor of this kind of machine.

    Arguments
    ---------
    folder : str or pathlib.Path
        Of ``hyperconformer/ops``, as it is laid out for the wheel.

    Raises
    ------
    OSError
        As :func:`compile_library`.
    """
    for source in sorted(pathlib.Path(folder).rglob("*.cpp")):
        for target in TARGETS.get(platform.machine(), ()):
            compile_library(source, built_library(source, target), target)
