"""Killed runs end as if nothing had happened; broken checkpoints are never loaded."""

import random
import time

import pytest
import torch

from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.training.resume import WholeCheckpointer

# Everything that draws random numbers is on: dropout, speeds, masks, joined pairs.
RANDOM = [
    "--augment_from_epoch=1",
    "--join_fraction=0.5",
    "--ckpt_interval_minutes=0",
    "--ckpt_interval_steps=2",
]


@pytest.fixture(scope="module")
def train(train_tiny):
    """Trains a tiny model into a folder; returns the exit status."""

    def run(folder, *more, **options):
        return train_tiny(folder, *RANDOM, *more, **options)

    return run


@pytest.fixture(scope="module")
def uninterrupted(train, printed, tmp_path_factory):
    """The same run in one go, by its further arguments."""
    folders = {}

    def run(*more):
        if more not in folders:
            folders[more] = tmp_path_factory.mktemp("uninterrupted") / "run"
            assert train(folders[more], *more) == 0, printed(folders[more])
        return folders[more]

    return run


def last_checkpoint(folder):
    """Everything that the newest checkpoint holds, but for what is read off a clock."""
    path = WholeCheckpointer(folder / "checkpoints").find_checkpoint().path
    content = {}
    for file in path.glob("*.ckpt"):
        try:
            content[file.name] = torch.load(file, weights_only=True)
        except Exception:
            lines = file.read_text().splitlines()  # a number, or YAML
            content[file.name] = [x for x in lines if not x.startswith("train_s: ")]
    return content


def assert_same(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where} {key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            assert_same(*pair, f"{where} {index}")
    else:
        assert one == other, where


def assert_same_end(folder, expected):
    weights = "model/model.safetensors"
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()
    found = last_checkpoint(folder)
    assert {"optimizer.ckpt", "random_states.ckpt", "extractor.ckpt"} <= set(found)
    assert_same(found, last_checkpoint(expected))
    logs = [read_train_log(run / "train_log.txt") for run in (folder, expected)]
    assert logs[0] == logs[1]


DEATHS = [
    ("update", 4),  # with a checkpoint inside the epoch behind it
    ("write", 3),  # the second file of the next one
    ("last file", 1),  # all files but the one that makes it a checkpoint
    ("validation", 1),
    ("deletion", 1),  # of the checkpoint before
    ("update", 2),
]


@pytest.mark.integration
def test_killed_again_and_again_a_run_ends_as_if_it_had_not_been(
    train, uninterrupted, printed, tmp_path
):
    folder = tmp_path / "run"
    for death in DEATHS:
        assert train(folder, death=death) == -9, (death, printed(folder))
    assert train(folder) == 0, printed(folder)
    assert printed(folder).count("Loading a checkpoint") >= len(DEATHS)
    assert_same_end(folder, uninterrupted())


@pytest.mark.integration
def test_an_epoch_whose_batches_changed_begins_again(
    train, uninterrupted, printed, tmp_path
):
    folder = tmp_path / "run"
    assert train(folder, death=("update", 4)) == -9, printed(folder)
    killed = WholeCheckpointer(folder / "checkpoints").find_checkpoint().path
    assert "step: 2" in (killed / "brain.ckpt").read_text()
    assert train(folder, "--max_batch_utterances=2") == 0, printed(folder)
    assert "written inside epoch 1, after 2 of 5 batches" in printed(folder)
    assert "it begins again, with the weights of the checkpoint" in printed(folder)
    log, whole = (
        read_train_log(run / "train_log.txt") for run in (folder, uninterrupted())
    )
    assert log["epoch"] == [1, 2] and log["lr"] == whole["lr"]
    # Two updates before the kill, and then all of the epoch's.
    assert log["updates"][0] == 2 + log["updates"][1] - log["updates"][0]


@pytest.mark.integration
def test_an_epoch_of_two_processes_begins_again_in_one(train, printed, tmp_path):
    folder = tmp_path / "run"
    assert train(folder, death=("update", 3), processes=2) == -9, printed(folder)
    assert train(folder) == 0, printed(folder)
    assert "inside epoch 1, after 2 of 3 batches" in printed(folder)
    assert "5 for each of 1 processes" in printed(folder)
    log = read_train_log(folder / "train_log.txt")
    assert log["updates"] == [2 + 5, 2 + 5 + 5] and log["lr"][-1] == 0.0


@pytest.mark.integration
def test_a_full_disk_ends_with_a_message_and_the_last_checkpoint(
    train, uninterrupted, printed, tmp_path
):
    folder = tmp_path / "run"
    # The second checkpoint's second file.
    content = last_checkpoint(uninterrupted()).values()
    files = sum(not isinstance(state, list) for state in content)
    assert train(folder, death=("full disk", files + 2)) == 1
    last_line = printed(folder).rstrip().splitlines()[-1]
    assert last_line.startswith("train.py: cannot write a checkpoint into")
    assert "start the same command again: it continues from CKPT+" in last_line
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert train(folder) == 0, printed(folder)
    assert_same_end(folder, uninterrupted())


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--loader_workers=2",),
        ("--grad_accumulation_factor=3",),
        ("--num_decoder_layers=1", "--consistency_weight=0.2"),
        ("--precision=bf16",),
    ],
    ids=lambda more: " ".join(more) or "plain",
)
def test_killed_at_random_times(train, uninterrupted, printed, tmp_path, more):
    """Five runs of each kind are killed five times, whatever they are doing."""
    expected = uninterrupted(*more)
    started = time.monotonic()
    assert train(tmp_path / "whole", *more) == 0, printed(tmp_path / "whole")
    whole_s = time.monotonic() - started
    source = random.Random(str(more))
    kills = runs = 0
    while kills < 25:
        folder, status = tmp_path / f"run{runs}", -9
        runs += 1
        for _ in range(5):
            status = train(folder, *more, death=("time", source.uniform(0, whole_s)))
            if status != -9:
                break
            kills += 1
        else:
            status = train(folder, *more)
        assert status == 0, printed(folder)
        assert_same_end(folder, expected)


def checkpointer(folder):
    layer = torch.nn.Linear(2, 2)
    return WholeCheckpointer(folder, {"layer": layer}), layer


def test_half_a_checkpoint_is_none_and_is_removed(tmp_path):
    saver, _ = checkpointer(tmp_path)
    first, second = (saver.save_checkpoint({"number": n}) for n in (1, 2))
    file = second.path / "layer.ckpt"
    file.write_bytes(file.read_bytes()[:-1])
    assert saver.find_checkpoint().path == first.path
    (first.path / "CKPT.yaml").unlink()
    assert saver.find_checkpoint() is None
    third = saver.save_checkpoint()
    assert saver.find_checkpoint().path == third.path
    assert list(tmp_path.iterdir()) == [third.path]


def test_speechbrains_own_checkpoints_are_read(tmp_path):
    from speechbrain.utils.checkpoints import Checkpointer

    ours, layer = checkpointer(tmp_path)
    theirs = Checkpointer(tmp_path, {"layer": layer})
    saved = theirs.save_checkpoint()
    weight = layer.weight.detach().clone()
    layer.weight.data.zero_()
    assert ours.recover_if_possible().path == saved.path
    assert torch.equal(layer.weight, weight)
    ours.save_checkpoint()
    assert saved.path.is_dir()


def test_a_checkpoint_of_a_run_with_fewer_parts_is_refused(tmp_path):
    parts = {"model": torch.nn.Linear(2, 2)}
    WholeCheckpointer(tmp_path, parts).save_checkpoint()
    grown = WholeCheckpointer(tmp_path, {**parts, "phone_ctc": torch.nn.Linear(2, 2)})
    before = grown.recoverables["model"].weight.clone()
    with torch.no_grad():
        grown.recoverables["model"].weight.zero_()
    with pytest.raises(ValueError, match="without phone_ctc.*--output_folder"):
        grown.recover_if_possible()
    assert not grown.recoverables["model"].weight.any()  # nothing was loaded
    grown.recoverables.pop("phone_ctc")
    grown.recover_if_possible()
    assert torch.equal(grown.recoverables["model"].weight, before)


def test_other_errors_than_a_full_disk_pass_through(tmp_path):
    saver, _ = checkpointer(tmp_path)
    saver.add_recoverable("unknown", object())
    with pytest.raises(RuntimeError, match="Don't know how to save"):
        saver.save_checkpoint()
    assert saver.find_checkpoint() is None
