"""Data-parallel training on two devices: its gradients and speed beside one device.

The second half of this module runs under ``torchrun``, once a device.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from benchmarks.environment import ROOT
from benchmarks.gpu.rows import Case, Failed, LeftOut, Measure
from benchmarks.gpu.timing import synchronize
from benchmarks.gpu.training import MIXERS, MODELS, QUICK_MODELS, Trainee, make_trainee

DEVICES = 2
STEPS = 10
TOLERANCE = 1e-4
"""Largest difference of gradients, of their norm: float32, sums in another order."""


def list_cases(settings, end):
    """The cases; see ``processes.run_part``."""
    model = next(iter(QUICK_MODELS if settings.quick else MODELS))
    mixer = "HyperMixing, Triton" if settings.device == "cuda" else "HyperMixing, torch"
    assert mixer in MIXERS

    def measure():
        if settings.device == "cuda" and torch.cuda.device_count() < DEVICES:
            raise LeftOut(f"there is {torch.cuda.device_count()} device, not {DEVICES}")
        if settings.device == "cpu":
            raise LeftOut("needs two devices; a CPU is one")
        yield from measure_processes(model, mixer, settings, end)

    return [Case(f"{model} | {mixer} | {DEVICES} processes", "float32", measure)]


def measure_processes(model, mixer, settings, end):
    """Start the processes and yield the measures of the first one.

    Arguments
    ---------
    model, mixer : str
        See ``training.build_encoder``.
    settings : Settings
        Of the benchmark.
    end : float
        By ``time.monotonic``, when they are stopped.

    Raises
    ------
    Failed
        If gradients differ.
    RuntimeError
        If the processes fail. The message is the first error that they printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "found.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            + [f"--nproc_per_node={DEVICES}", "--module", "benchmarks.gpu.ddp"]
            + [settings.device, model, mixer, str(found)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()  # killed, torchrun would leave its processes behind
            process.communicate()
            raise LeftOut("the time was over") from None
        if process.returncode:
            lines = said.strip().splitlines()
            print("\n".join(lines[-40:]), file=sys.stderr)
            errors = [line for line in lines if "Error" in line] or lines[-1:]
            raise RuntimeError(f"torchrun failed: {errors[0] if errors else ''}")
        numbers = json.loads(found.read_text())
    for metric, value, unit in numbers:
        yield Measure(metric, value, unit)
    difference = numbers[0][1]
    if not difference <= TOLERANCE:
        raise Failed("gradients of two processes are not those of one")


def compare_with_one(device, model, mixer):
    """What one of the processes does.

    Arguments
    ---------
    device : str
        "cuda" or "cpu".
    model, mixer : str
        See ``training.build_encoder``.

    Returns
    -------
    list of (str, float, str)
        Metric, value and unit; the first is the difference of the gradients.
    """
    rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    count, seconds = 2 * DEVICES, 4
    whole, _ = make_trainee(model, mixer, count, seconds, device)
    whole.encoder.eval()  # Without dropout, which draws in another order.
    whole.loss(autocast=False).backward()
    weights = list(whole.encoder.parameters())
    expected = torch.cat([w.grad.flatten() for w in weights if w.grad is not None])
    whole.optimizer.zero_grad(set_to_none=True)

    encoder = DistributedDataParallel(
        whole.encoder, device_ids=[rank] if device == "cuda" else None
    )
    half = Trainee(encoder, whole.x.chunk(DEVICES)[rank])
    half.loss(autocast=False).backward()
    got = torch.cat([w.grad.flatten() for w in weights if w.grad is not None])
    difference = ((got - expected).norm() / expected.norm()).item()
    half.optimizer.zero_grad(set_to_none=True)

    speeds = []
    encoder.train()
    whole.encoder.train()
    for trainee in (Trainee(whole.encoder, half.x), half):
        trainee.update()
        synchronize(device)
        torch.distributed.barrier()
        start = time.perf_counter()
        for _ in range(STEPS):
            trainee.update()
        synchronize(device)
        took = time.perf_counter() - start
        speeds.append(STEPS * len(half.x) * seconds / took)
    torch.distributed.destroy_process_group()
    one, each = speeds
    return [
        ("gradients' difference from one device", difference, "of the norm"),
        ("speed of one", one, "audio s/s"),
        ("speed of both", DEVICES * each, "audio s/s"),
    ]


if __name__ == "__main__":
    *arguments, file = sys.argv[1:]
    numbers = compare_with_one(*arguments)
    if os.environ["LOCAL_RANK"] == "0":
        pathlib.Path(file).write_text(json.dumps(numbers))
