"""What the device can do at most: bytes moved and numbers multiplied in a second."""

import torch

from benchmarks.gpu.rows import Case, Measure
from benchmarks.gpu.timing import time_call

# Names to the tensors' dtype and the precision of float32 products.
PRODUCTS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}


def list_cases(settings, end):
    """The cases; see ``processes.run_part``."""
    megabytes, side = (16, 256) if settings.quick else (1024, 8192)
    cases = [
        Case(
            f"{name} of {megabytes} MiB", "float32", _memory(settings, name, megabytes)
        )
        for name in ("copy", "triad")
    ]
    for name in PRODUCTS:
        size = f"product of {side} x {side}"
        cases.append(Case(size, name, _product(settings, name, side)))
    return cases


def _memory(settings, name, megabytes):
    def measure():
        numbers = megabytes * 2**20 // 4
        a, b, c = (torch.ones(numbers, device=settings.device) for _ in "abc")

        def run():
            if name == "copy":
                a.copy_(b)
            else:
                torch.add(b, c, alpha=2.0, out=a)

        moved = numbers * 4 * (2 if name == "copy" else 3)
        times = time_call(run, settings.device, settings.quick)
        yield Measure("bandwidth", moved / times.p50 / 1e6, "GB/s")

    return measure


def _product(settings, name, side):
    def measure():
        dtype, precision = PRODUCTS[name]
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(side, side, device=settings.device).to(dtype) for _ in "ab")
        times = time_call(lambda: a @ b, settings.device, settings.quick)
        torch.set_float32_matmul_precision("highest")
        yield Measure("products", 2 * side**3 / times.p50 / 1e9, "TFLOP/s")

    return measure
