"""The device that is measured, and the versions of what measures it."""

import platform

import torch

from benchmarks.environment import commit, processor, version


def has_gpu():
    """Whether PyTorch sees a CUDA device. Call it in a process of its own."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def facts(device):
    """What figures depend on. Call it in a process of its own.

    Arguments
    ---------
    device : str
        "cuda" or "cpu".

    Returns
    -------
    dict of str to str
        ``card`` is the name of the device.
    """
    return {
        **(_gpu_facts() if device == "cuda" else _cpu_facts()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "speechbrain": version("speechbrain"),
        "flash-linear-attention": version("flash-linear-attention"),
        "commit": commit(),
    }


def _gpu_facts():
    properties = torch.cuda.get_device_properties(0)
    return {
        "card": properties.name,
        "devices": str(torch.cuda.device_count()),
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": str(properties.multi_processor_count),
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
    }


def _cpu_facts():
    return {
        "card": processor(),
        "threads": str(torch.get_num_threads()),
        "kernels": "in Triton's interpreter",
    }


def _driver():
    """The version of NVIDIA's driver, as far as the system tells."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return "unknown"
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    return numbers[0] if numbers else "unknown"
