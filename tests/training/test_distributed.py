"""Two processes train as one does that accumulates two batches."""

import pytest
import torch
from safetensors.torch import load_file

from hyperconformer.evaluation.plots import read_train_log

pytestmark = pytest.mark.integration

# Nothing random, and plain gradient descent: Adam would blow up the rounding of
# gradients that are zero but for rounding.
SETTINGS = [
    "--max_batch_utterances=1",  # fourteen batches, which two can share
    "--dropout=0.0",
    "--augment_from_epoch=9",
    "--num_decoder_layers=1",
    "--optimizer=!name:torch.optim.SGD {lr: 0.1, weight_decay: !ref <weight_decay>}",
]


@pytest.fixture(scope="module")
def runs(train_tiny, printed, tmp_path_factory):
    """The folder of one process that accumulates, and that of two processes."""
    one, two = (tmp_path_factory.mktemp(name) / "run" for name in ("one", "two"))
    accumulating = [*SETTINGS, "--grad_accumulation_factor=2"]
    assert train_tiny(one, *accumulating) == 0, printed(one)
    assert train_tiny(two, *SETTINGS, processes=2) == 0, printed(two)
    return one, two


def test_equal_losses_and_weights(runs):
    logs = [read_train_log(folder / "train_log.txt") for folder in runs]
    # One line an epoch, from one process; the log rounds to three digits.
    assert logs[0] == logs[1] and logs[0]["epoch"] == [1.0, 2.0]
    assert logs[0]["valid loss"][1] < logs[0]["valid loss"][0]
    weights = [load_file(folder / "model/model.safetensors") for folder in runs]
    for key, weight in weights[0].items():
        # Sums of a few gradients in another order, a few updates long.
        error = (weight - weights[1][key]).abs().max()
        assert error <= 16 * torch.finfo(torch.float32).eps * weight.abs().max(), key


def test_a_killed_pair_continues(train_tiny, printed, runs, tmp_path):
    folder = tmp_path / "run"
    saving = ["--ckpt_interval_minutes=0", "--ckpt_interval_steps=1"]
    arguments = [*SETTINGS, *saving]
    status = train_tiny(folder, *arguments, processes=2, death=("update", 2))
    assert status == -9, printed(folder)
    assert train_tiny(folder, *arguments, processes=2) == 0, printed(folder)
    assert "Loading a checkpoint" in printed(folder)
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (runs[1] / weights).read_bytes()


def test_another_number_of_processes_continues_and_says_so(train_tiny, printed, runs):
    _, folder = runs
    assert train_tiny(folder, *SETTINGS, "--number_of_epochs=3") == 0, printed(folder)
    assert "written by 2 processes, not by 1" in printed(folder)
    log = read_train_log(folder / "train_log.txt")
    assert log["epoch"] == [1.0, 2.0, 3.0]
