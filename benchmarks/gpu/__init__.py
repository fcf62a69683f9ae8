"""``python -m benchmarks gpu``: what can be known of the kernels on a GPU.

It needs PyTorch and Triton alone. What needs SpeechBrain or another package is left
out where that is missing, and the page names it.
"""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import sys
import time
from typing import NamedTuple

RESULTS = pathlib.Path(__file__).parents[1] / "results"


class Settings(NamedTuple):
    """What every part of the benchmark knows.

    Arguments
    ---------
    device : str
        "cuda" or "cpu".
    quick : bool
        Whether sizes are as small as a CPU needs them.
    an4 : pathlib.Path or None
        AN4's folder.
    results : pathlib.Path
        Folder for the results.
    """

    device: str
    quick: bool
    an4: pathlib.Path | None
    results: pathlib.Path


def main(arguments=None):
    """Measure everything; returns 1 if a kernel is wrong or a part broke."""
    options = parse(arguments)
    if options.device == "cpu":
        # Before Triton is imported. And torch's paths, which compile nothing, wherever
        # a path is not named.
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["HYPERCONFORMER_BACKEND"] = "torch"
    # Asked for otherwise, the driver would be unusable in forked processes.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

    from benchmarks.gpu import an4, ceilings, ddp, device, parity, times, training
    from benchmarks.gpu.processes import call_in_process, run_part
    from benchmarks.gpu.report import write_page
    from benchmarks.gpu.rows import FAILED, Row, RowFile

    if options.device == "cuda" and not call_in_process(device.has_gpu):
        return _complain(
            "no CUDA device is found. On a machine without one, "
            "`python -m benchmarks gpu --device cpu --quick` tests the command"
        )
    # Each with its share of the time; what a part leaves goes to those after it.
    parts = {
        "parity": (parity.list_cases, 8),
        "ceilings": (ceilings.list_cases, 1),
        "times": (times.list_cases, 6),
        "training": (training.list_steps, 3),
        "compile": (training.list_compiled, 2),
        "DDP": (ddp.list_cases, 1),
        "AN4": (an4.list_cases, 0 if options.an4 is None else 6),
    }
    settings = Settings(options.device, options.quick, options.an4, options.results)
    options.results.mkdir(parents=True, exist_ok=True)
    file = RowFile(options.results / "gpu.csv")

    def add(row):
        file.add(row)
        if "percentile" in row.metric:
            return
        number = " ".join(filter(None, (row.metric, row.value, row.unit)))
        said = number if row.status == "ok" else row.status
        print(" | ".join(filter(None, (row.part, row.case, row.dtype, said))))
        sys.stdout.flush()

    start = time.monotonic()
    for name, value in call_in_process(device.facts, options.device).items():
        add(Row("environment", "", "", name, value))
    page = options.results / "gpu.md"
    with _interpreter(options.device):
        for place, (name, (list_cases, share)) in enumerate(parts.items()):
            later = sum(share for _, share in list(parts.values())[place:])
            left = 60 * options.minutes - (time.monotonic() - start)
            seconds = max(0.0, left * share / later) if later else max(0.0, left)

            def cases(end, list_cases=list_cases):
                return list_cases(settings, end)

            run_part(name, cases, seconds, add)
            write_page(page, file.rows, complete=place == len(parts) - 1)
    print(f"{page}: {time.monotonic() - start:.0f} s")
    return int(any(row.status.startswith(FAILED) for row in file.rows))


def parse(arguments):
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="the device to measure",
    )
    parser.add_argument(
        "--results",
        type=pathlib.Path,
        default=RESULTS,
        help="folder for gpu.csv and gpu.md",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=20.0,
        help="after which nothing new begins; what did not fit is named",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to test the command"
    )
    parser.add_argument(
        "--an4",
        type=pathlib.Path,
        metavar="FOLDER",
        help="AN4 with etc and wav: its recipe is trained too; needs SpeechBrain",
    )
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.quick:
        parser.error(
            "a CPU runs the kernels in Triton's interpreter, which takes days for "
            "whole sizes: add --quick"
        )
    if importlib.util.find_spec("triton") is None:
        parser.error("needs the package triton: pip install triton")
    options.results = options.results.resolve()
    if options.an4 is not None:
        if not (options.an4 / "etc").is_dir():
            parser.error(f"--an4: {options.an4} has no folder etc; give AN4's folder")
        options.an4 = options.an4.resolve()
    return options


def _complain(message):
    print(f"python -m benchmarks gpu: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _interpreter(device):
    """Triton's interpreter mended, where it runs the kernels."""
    if device != "cpu":
        yield
        return
    from benchmarks.gpu.interpreter import preparing_once_a_launch, rounding_to_nearest

    with rounding_to_nearest(), preparing_once_a_launch():
        yield
