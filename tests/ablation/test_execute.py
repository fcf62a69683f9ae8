"""Runs, failures, interruptions, reports: with a stand-in for training."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hyperconformer.ablation.execute import Executor, Store
from hyperconformer.ablation.plan import planned_runs, read_ablation
from hyperconformer.ablation.search import Trials
from hyperconformer.cli.main import main

BASE = """
seed: 0
output_folder: out
data_folder: data
lr: 0.1
dropout: 0.0
max_updates: null
number_of_epochs: 1
"""
# Its error rate is a function of lr and seed; lr = 13 fails, lr = 99 takes for ever.
TRAIN = """
import csv, json, pathlib, sys, time
given = dict(word[2:].split("=", 1) for word in sys.argv[2:])
lr, seed = float(given["lr"]), int(given["seed"])
print("learning rate", lr)
if lr == 13:
    sys.exit("train: bad luck")
out = pathlib.Path(given["output_folder"])
(out / "checkpoints").mkdir(parents=True, exist_ok=True)
(out / "calls").open("a").write("x")
if lr == 99:
    time.sleep(600)
wrong = [min(10, int(lr) + seed % 2 + i % 3) for i in range(20)]
with open(out / "errors_test.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["ID", "words", "word_errors", "characters", "character_errors"])
    rows.writerows([i, 10, n, 40, n] for i, n in enumerate(wrong))
stats = {"loss": lr, "WER": sum(wrong) / 2, "CER": sum(wrong) / 8}
content = {"splits": {"valid": stats, "test": stats, "test_640ms": stats},
           "valid": "valid", "test": "test", "parameters": 5, "updates": 4,
           "train_s": 2.0, "macs_per_audio_s": int(1e6 * lr), "peak_memory_bytes": None}
(out / "results.json").write_text(json.dumps(content))
(out / "train_log.txt").write_text("".join(
    f"epoch: {e}, updates: {2 * e} - train loss: 1 - valid loss: {lr / e}, "
    f"valid WER: {50 / e}, valid CER: {30 / e}\\n" for e in (1, 2)))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working folder with the stand-in; the function writes an ablation there."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hyperconformer.ablation.plan.TRAIN", ("train.py",))

    def write(text):
        path = tmp_path / "study.yaml"
        path.write_text(f"base: base.yaml\n{text}")
        return path

    return write


def table(project_folder):
    with open(project_folder / "results/ablations/study/results.csv") as file:
        return list(csv.DictReader(file))


def test_failures_are_recorded_and_the_rest_goes_on(project, tmp_path, capsys):
    path = project("axes: {lr: [3, 13, 1]}\nseeds: [1, 2]\nbaseline: {lr: 3}\n")
    assert main(["ablate", str(path), "--jobs", "2"]) == 1
    rows = table(tmp_path)
    assert [row["status"] for row in rows] == ["done", "failed", "done"] * 2
    assert {row["error"] for row in rows} == {"", "train: bad luck"}
    report = (tmp_path / "results/ablations/study/README.md").read_text()
    assert "4 of 6 runs done, 2 failed" in report
    lines = [line for line in report.splitlines() if line.startswith("| ")]
    # Best first; the mean and the spread of 19.5 and 29.5.
    assert lines[2].startswith("| 1 | 2 | 24.5 ± 7.1 | -20.0 to -20.0 |")
    assert lines[3].startswith("| 3 | 2 | 44.5 ± 7.1 | baseline |")
    for picture in ("cost.png", "curves.png", "axis.png"):
        assert (tmp_path / "results/ablations/study" / picture).stat().st_size > 1000
        assert f"({picture})" in report
    log = next(tmp_path.glob("results/ablations/runs/*/log.txt"))
    assert "learning rate" in log.read_text()
    assert not list(tmp_path.glob("results/ablations/runs/*/output/checkpoints"))


@pytest.mark.integration
def test_what_is_done_is_not_done_again(project, tmp_path, capsys):
    path = project("axes: {lr: [3, 13]}\n")
    assert main(["ablate", str(path)]) == 1
    before = table(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN.replace("lr == 13", "lr == 14"))
    assert main(["ablate", str(path)]) == 1  # the failure stands
    assert table(tmp_path) == before
    assert main(["ablate", str(path), "--retry"]) == 0
    after = table(tmp_path)
    assert after[0]["finished"] == before[0]["finished"]
    assert after[1]["status"] == "done"
    # Another ablation that has a run in common finds it done.
    other = path.with_name("other.yaml")
    other.write_text("base: base.yaml\nset: {lr: 3}\n")
    assert main(["ablate", str(other), "--dry-run"]) == 0
    assert "0 runs to do" in capsys.readouterr().out


def test_dry_run_tells_plan_and_cost_and_does_nothing(project, tmp_path, capsys):
    path = project("axes: {lr: [1, 2]}\nbudget: {updates: 9}\n")
    assert main(["ablate", str(path), "--dry-run", "--device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "2 runs to do, of 9 updates each" in said and "lr=1" in said
    assert "--max_updates=9" in said and "--device=cpu" in said
    assert not (tmp_path / "results").exists()
    path.write_text(path.read_text().replace("[1, 2]", "[1]"))
    main(["ablate", str(path)])
    path.write_text(path.read_text().replace("[1]", "[1, 2]"))
    capsys.readouterr()
    main(["ablate", str(path), "--dry-run"])
    said = capsys.readouterr().out
    assert "1 runs to do" in said and "the 1 that are done took" in said


def test_arguments_that_no_run_would_take_are_refused(project, capsys):
    path = project("axes: {lr: [1, 2]}\n")
    for more in ((), ("--dry-run",)):
        assert main(["ablate", str(path), *more, "--max_batchs=3"]) == 1
        assert "unknown key 'max_batchs'" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_runs_and_records_no_failure(
    project, tmp_path, kind, interruptible
):
    path = project("axes: {lr: [1, 99]}\n")
    code = (
        "import sys\n"
        "from hyperconformer.ablation import plan\n"
        "from hyperconformer.cli.main import main\n"
        "plan.TRAIN = ('train.py',)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "ablate", str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    calls = "results/ablations/runs/*/output/calls"
    wait_for(lambda: sum(file.stat().st_size for file in tmp_path.glob(calls)) == 2)
    process.send_signal(kind)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 130 and b"goes on from here" in said
    assert [row["status"] for row in table(tmp_path)] == ["done", "missing"]
    (tmp_path / "train.py").write_text(TRAIN.replace("time.sleep(600)", "pass"))
    assert main(["ablate", str(path)]) == 0
    calls = {
        json.loads((folder / "row.json").read_text())["overrides"]["lr"]: len(
            (folder / "output/calls").read_text()
        )
        for folder in tmp_path.glob("results/ablations/runs/*")
    }
    assert calls == {1: 1, 99: 2}


def wait_for(condition, seconds=900):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def test_a_run_that_another_process_has_is_left_to_it(project, tmp_path):
    path = project("axes: {lr: [99]}\n")
    ((_, run),) = planned_runs(read_ablation(path))
    store = Store(tmp_path / "runs")
    first, second = Executor(store), Executor(store)
    thread = threading.Thread(target=first.do, args=(run,))
    thread.start()
    wait_for(lambda: (store.of(run) / "output/calls").exists())
    assert second.do(run) is None
    first.stop()
    thread.join()
    assert store.row(run) is None


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_search(project, tmp_path, sampler, capsys):
    pytest.importorskip("optuna")
    text = (
        "axes: {number_of_epochs: [1, 2]}\n"
        f"search: {{sampler: {sampler}, trials: TRIALS, space: "
        "{lr: {low: 0.5, high: 9.0, log: true}, dropout: [0.0, 0.1]}}\n"
    )
    path = project(text.replace("TRIALS", "2"))
    assert main(["ablate", str(path)]) == 0
    first = table(tmp_path)
    path.write_text(path.read_text().replace("trials: 2", "trials: 4"))
    assert main(["ablate", str(path)]) == 0
    rows = table(tmp_path)
    assert len(first) == 4 and len(rows) == 8
    assert [row for row in rows if row in first] == first
    report = (tmp_path / "results/ablations/study/README.md").read_text()
    assert "| arm | 1 trials | 2 trials | 4 trials |" in report
    assert (tmp_path / "results/ablations/study/search.png").exists()
    if sampler == "random":  # both arms draw the same points
        points = {(row["number_of_epochs"], row["lr"], row["dropout"]) for row in rows}
        assert len({point[1:] for point in points}) == 4
    main(["ablate", str(path), "--dry-run"])
    assert "0 runs to do" in capsys.readouterr().out


def test_a_search_is_planned_without_a_trace(project, tmp_path, capsys):
    pytest.importorskip("optuna")
    path = project(
        "axes: {number_of_epochs: [1, 2]}\n"
        "search: {sampler: random, trials: 3, space: {lr: {low: 0.5, high: 9.0}}}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    assert main(["ablate", str(path), "--dry-run"]) == 0
    assert "of each of 2 arms" in capsys.readouterr().out
    ablation, store = read_ablation(path), Store(tmp_path / "runs")
    reader = Trials(ablation, store, tmp_path / "runs", create=False)
    assert (reader.planned(), reader.left()) == ([], 6)
    assert sorted(tmp_path.rglob("*")) == before
    # It sees what another process begins meanwhile.
    trials = Trials(ablation, store, tmp_path / "runs")
    run = next(trials.runs())
    assert [run.key for _, run in reader.planned()] == [run.key]
    trials.done(run, {"status": "failed"})
    assert reader.left() == 5


def test_mistakes_end_with_a_message(project, capsys):
    path = project("axes: {lrr: [1]}\n")
    assert main(["ablate", str(path)]) == 1
    assert "unknown key 'lrr'" in capsys.readouterr().err
    path = project("search: {sampler: grid, trials: 1, space: {lr: [1]}}\n")
    assert main(["ablate", str(path)]) == 1
    assert "unknown sampler 'grid'" in capsys.readouterr().err
    assert main(["ablate", str(project("")), "--jobs", "0"]) == 1
    assert "--jobs" in capsys.readouterr().err
    assert main(["ablate", "head"]) == 1
    assert "unknown ablation 'head'; did you mean 'heads'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["mixers", "--lr=1"])
