"""The AN4 recipe, trained to its end, and its error rate."""

import functools
import importlib.util
import json
import subprocess
import sys
import time

from benchmarks.environment import ROOT
from benchmarks.gpu.rows import Case, LeftOut, Measure

RECIPE = ROOT / "recipes/AN4/hparams/hyperconformer.yaml"


def list_cases(settings, end):
    """The one case; see ``processes.run_part``."""
    return [Case("AN4 recipe", "float32", functools.partial(_train, settings, end))]


def _train(settings, end):
    """Train, and yield the error rates."""
    if settings.an4 is None:
        raise LeftOut("no folder was given with --an4")
    if importlib.util.find_spec("speechbrain") is None:
        raise LeftOut("SpeechBrain is not installed")
    output = settings.results / "an4"
    command = [sys.executable, "-m", "hyperconformer.cli", "train", str(RECIPE)]
    command += [f"--data_folder={settings.an4}", f"--output_folder={output}"]
    command += [f"--device={settings.device}"]
    if settings.quick:
        command += ["--number_of_epochs=1"]
    log = settings.results / "an4.log"
    with open(log, "w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, end - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            raise LeftOut(
                "the time was over before it had trained to the end; "
                "the same command goes on from its last checkpoint"
            ) from None
    if done.returncode:
        raise RuntimeError(f"training failed: see {log}")
    yield from read_results(output / "results.json")


def read_results(path):
    """Yield the measures of a trained recipe's ``results.json``."""
    found = json.loads(path.read_text(encoding="utf-8"))
    test = found["splits"][found["test"]]
    yield Measure("word error rate", float(test["WER"]), "%")
    yield Measure("character error rate", float(test["CER"]), "%")
    yield Measure("training", float(found["train_s"]), "s")
