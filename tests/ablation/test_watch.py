"""The live table shows what the results folder says, whoever writes into it."""

import io
import json
import os
import pathlib
import time

import pytest

from hyperconformer.ablation.execute import Store
from hyperconformer.ablation.plan import planned_runs, read_ablation
from hyperconformer.ablation.watch import progress, table, watch
from hyperconformer.cli.main import main

rich_console = pytest.importorskip("rich.console")
ROOT = pathlib.Path(__file__).resolve().parents[2]
ABLATION = f"""
base: {ROOT}/hparams/fragments/ablation.yaml
combinations: [{{attention_type: RoPEMHA}}, {{attention_type: [RoPEMHA, hypermixing]}}]
seeds: [1, 2]
budget: {{updates: 400}}
metric: CER
"""
LINE = "epoch: {0}, lr: 1.0e-03, updates: {1} - train loss: 2.1 - valid CER: {2}\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("ablation") / "two.yaml"
    path.write_text(ABLATION)
    return path


@pytest.fixture(scope="module")
def ablation(file):
    return read_ablation(file)


@pytest.fixture
def begun(ablation, tmp_path):
    """One run done, one begun, silent for five minutes, one failed, one waiting."""
    store, planned = Store(tmp_path / "results/runs"), planned_runs(ablation)
    done, running, failed, _ = (store.of(run) for _, run in planned)
    for folder in (done, running, failed):
        (folder / "output").mkdir(parents=True)
        (folder / "log.txt").write_text("...")
    log = running / "output/train_log.txt"
    log.write_text(LINE.format(1, 57, 88.0) + LINE.format(2, 114, 71.25))
    (done / "output/train_log.txt").write_text(LINE.format(7, 400, 39.5))
    earlier = time.time() - 310
    os.utime(running / "log.txt", (earlier, earlier))
    (done / "row.json").write_text(json.dumps({"status": "done"}))
    (failed / "row.json").write_text(json.dumps({"status": "failed"}))
    return store, planned


def finish(store, planned):
    for _, run in planned:
        store.of(run).mkdir(exist_ok=True)
        (store.of(run) / "row.json").write_text(json.dumps({"status": "done"}))


def printed(shown):
    out = io.StringIO()
    rich_console.Console(file=out, width=110).print(shown)
    return out.getvalue()


def test_each_run_says_how_far_it_is(ablation, begun):
    store, planned = begun
    rows = [(arm, run, progress(run, store)) for arm, run in planned]
    text = printed(table(ablation, rows))
    assert "two: 1 done, 1 begun, 1 failed, 1 waiting" in text
    done, running, failed, waiting = text.splitlines()[-5:-1]
    assert all(part in done for part in ("RoPEMHA", "400 / 400", "39.5", "done"))
    # The list of an arm's mixers is text, no markup of rich.
    assert '["RoPEMHA", "hypermixing"]' in running
    assert all(part in running for part in ("114 / 400", "71.25", "5 min ago", "begun"))
    assert "failed" in failed and "waiting" in waiting
    assert "trials left" in printed(table(ablation, rows, left=3))


@pytest.mark.integration
def test_it_follows_other_processes_to_the_end(ablation, begun, monkeypatch):
    """The folder changes while the table is shown; nothing in it is written."""
    monkeypatch.setattr("hyperconformer.ablation.watch.REFRESH_S", 0.0)
    (store, planned), out = begun, io.StringIO()

    def known():
        if "1 done, 1 begun" in out.getvalue():
            finish(store, planned)
        return planned

    console = rich_console.Console(file=out, width=110, force_terminal=True)
    watch(ablation, known, store, console=console)
    assert "4 done, 0 begun" in out.getvalue()
    assert not list(store.folder.glob("*/.lock"))


def test_the_command_runs_nothing(begun, file, tmp_path, capsys):
    finish(*begun)
    arguments = ["ablate", str(file), "--results", str(tmp_path / "results")]
    assert main([*arguments, "--watch"]) == 0
    assert "4 done" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--watch", "--dry-run"])
    assert "not allowed with" in capsys.readouterr().err
