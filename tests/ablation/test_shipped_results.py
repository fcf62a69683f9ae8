"""The results in docs/ablations are what their commands give."""

import csv
import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from hyperconformer.ablation.plan import planned_runs, read_ablation

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "hparams/ablations").glob("*.yaml"))

# Relative. The same processor and instructions give every digit again; with SSE instead
# of AVX2 kernels (ATEN_CPU_CAPABILITY=default) 400 updates end at 1.36417 where 1.36320
# is recorded, 7e-4 off. The next arm of the table is 3e-2 away.
LOSS_TOLERANCE = 1e-2


def rows(name):
    with open(ROOT / "docs/ablations" / name / "results.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_planned_run_has_its_row(path):
    ablation = read_ablation(path)
    table = rows(ablation.name)
    assert all(row["status"] == "done" for row in table)
    planned = [
        {f"--{name}={value}" for name, value in arm.items() if isinstance(value, str)}
        for arm, _ in planned_runs(ablation)
    ]
    trials = ablation.search.trials if ablation.search else 1
    arms = len(ablation.arms()) * len(ablation.seeds)
    assert len(table) == arms * trials
    for wanted in planned:
        assert any(wanted <= set(shlex.split(row["command"])) for row in table)


def test_a_shipped_row_comes_out_again(tmp_path):
    """The command that stands in the table of mixers, on one CPU thread."""
    (row,) = [r for r in rows("mixers") if r["attention_type"] == "hypermixing"]
    python, *arguments, place = shlex.split(row["command"])
    assert python == "python" and place.startswith("--output_folder=")
    ended = subprocess.run(
        [
            *(sys.executable, *arguments),
            *(f"--output_folder={tmp_path}", f"--data_folder={tmp_path / 'spoken'}"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parameters"] == int(row["parameters"])
    assert results["updates"] == int(row["updates"]) == 400
    loss = results["splits"]["test"]["loss"]
    assert loss == pytest.approx(float(row["loss"]), rel=LOSS_TOLERANCE)
