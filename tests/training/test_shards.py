"""Training on shards."""

import pytest
from object_store import FOREVER

from hyperconformer.corpora.shards import write_shards

RESULTS = ("model/model.safetensors", "train_log.txt", "wer_test.txt")


@pytest.fixture(scope="module")
def files(train_tiny, printed, tmp_path_factory):
    """A run on files."""
    folder = tmp_path_factory.mktemp("runs") / "files"
    assert train_tiny(folder) == 0, printed(folder)
    return folder


@pytest.fixture(scope="module")
def shards(files, tmp_path_factory):
    """The same corpus in shards."""
    names = {"train": "train", "valid": "dev", "test": "test"}
    manifests = {
        split: files / f"manifests/{name}-spoken.csv" for split, name in names.items()
    }
    folder = tmp_path_factory.mktemp("shards")
    assert write_shards(manifests, folder, shard_mb=0.1) > len(manifests)
    return folder


@pytest.fixture(scope="module")
def train_shards(train_tiny):
    """Trains on shards as the run on files did; returns the exit status."""

    def run(output, folder, *more, **options):
        corpus = ["--corpus=shards", f"--data_folder={folder}", "--corpus_options={}"]
        return train_tiny(output, *corpus, *more, **options)

    return run


def assert_same_results(one, other):
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.integration
def test_a_run_on_shards_is_the_run_on_files(
    train_shards, files, shards, printed, tmp_path
):
    packed = tmp_path / "packed"
    assert train_shards(packed, shards) == 0, printed(packed)
    assert_same_results(packed, files)


@pytest.mark.integration
def test_a_store_that_dies_within_an_epoch_and_comes_back(
    train_shards, files, shards, object_store, printed, tmp_path
):
    output, url = tmp_path / "stored", object_store.upload(shards, "shards")
    checkpoints = ["--ckpt_interval_minutes=0", "--ckpt_interval_steps=1"]

    def train():
        before = object_store.reads.value
        environment = object_store.environment
        more = [*checkpoints, "--loader_workers=2"]
        status = train_shards(output, url, *more, environment=environment)
        return status, object_store.reads.value - before

    # The first epoch trains on 14 utterances and validates on 3. In the second, two
    # processes read two batches of 2 or 3 utterances each ahead of the training.
    object_store.lives.value = 14 + 3 + 12
    status, _ = train()
    last = printed(output).rstrip().splitlines()[-1]
    assert status == 1
    assert last.startswith(f"train.py: {url}/train-00000")
    assert "tried for" in last and "the same command continues the run" in last
    assert len((output / "train_log.txt").read_text().splitlines()) == 1

    object_store.lives.value = FOREVER
    status, reads = train()
    assert status == 0, printed(output)
    # The rest of the second epoch, validation, the two tests and one transcript.
    assert reads < 14 + 3 + 3 + 2 + 1
    assert_same_results(output, files)
