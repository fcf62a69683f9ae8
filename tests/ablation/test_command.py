"""Three real trainings: interrupted, resumed, one run failing."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from hyperconformer.cli.main import main

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDED = json.loads((pathlib.Path(__file__).parent / "recorded_row.json").read_text())
ABLATION = """
base: ROOT/hparams/fragments/ablation.yaml
set:
  d_model: 16
  d_ffn: 32
  nhead: 2
  num_encoder_layers: 1
  kernel_size: 7
  max_batch_utterances: 4
  corpus_options: {train_utterances: 12, valid_utterances: 4, test_utterances: 4}
combinations:
  - {attention_type: hypermixing, mixer_options: {}}
  - {attention_type: regularMHA, mixer_options: {}}
  - {attention_type: regularMHA, mixer_options: {}, kernel_size: 6}
budget: {updates: 4}
metric: loss
baseline: {attention_type: hypermixing, mixer_options: {}}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory, interruptible):
    """Interrupted after the first run, then to its end."""
    folder = tmp_path_factory.mktemp("ablation")
    file = folder / "three_runs.yaml"
    file.write_text(ABLATION.replace("ROOT", str(ROOT)))
    arguments = [
        *("ablate", str(file), "--results", str(folder / "results")),
        f"--data_folder={folder / 'spoken'}",
    ]
    # The row is recorded of torch's operations, whose rounding changes less.
    forced = {"OMP_NUM_THREADS": "1", "HYPERCONFORMER_BACKEND": "torch"}
    first = subprocess.Popen(
        [sys.executable, "-m", "hyperconformer.cli", *arguments],
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **forced},
    )
    limit = time.monotonic() + 900
    while first.poll() is None and not list(folder.glob("results/runs/*/row.json")):
        assert time.monotonic() < limit, "no run ended"
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=900) == 130
    interrupted = rows(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, value in forced.items():
            patch.setenv(name, value)
        assert main(arguments) == 1  # as one run fails
    return folder, interrupted, rows(folder)


def rows(folder):
    with open(folder / "results/three_runs/results.csv") as file:
        return list(csv.DictReader(file))


def test_it_goes_on_after_an_interruption_and_after_a_failure(swept):
    _, interrupted, complete = swept
    assert [row["status"] for row in interrupted] == ["done", "missing", "missing"]
    assert [row["status"] for row in complete] == ["done", "done", "failed"]
    assert complete[0]["finished"] == interrupted[0]["finished"]
    assert "kernel_size must be odd, got 6" in complete[2]["error"]


def test_a_row_tells_what_was_measured(swept):
    _, _, (row, other, _) = swept
    for name in ("loss", "WER", "CER", "WER_low", "WER_high", "times_real_time"):
        assert float(row[name]) >= 0
    assert int(row["updates"]) == 4 and float(row["train_s"]) > 0
    for name in ("parameters", "macs_per_audio_s"):
        assert int(row[name]) != int(other[name])
    assert int(row["peak_memory_bytes"]) > 10e6 and row["commit"]


def test_the_report_is_rendered(swept):
    folder, _, _ = swept
    report = (folder / "results/three_runs/README.md").read_text()
    assert "2 of 3 runs done, 1 failed" in report and "regularMHA" in report
    for picture in ("cost.png", "curves.png"):
        assert (folder / "results/three_runs" / picture).stat().st_size > 5000


def test_a_recorded_row_comes_out_again(swept):
    """The loss after four updates, as it was recorded on another day."""
    _, _, (row, *_) = swept
    assert int(row["parameters"]) == RECORDED["parameters"]
    loss = float(row["loss"])
    assert loss == pytest.approx(RECORDED["loss"], rel=RECORDED["tolerance"])
