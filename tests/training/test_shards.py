"""Training on shards."""

from hyperconformer.corpora.shards import write_shards


def test_a_run_on_shards_is_the_run_on_files(train_tiny, printed, tmp_path):
    files, packed = tmp_path / "files", tmp_path / "packed"
    epoch = "--number_of_epochs=1"
    assert train_tiny(files, epoch) == 0, printed(files)
    names = {"train": "train", "valid": "dev", "test": "test"}
    manifests = {
        split: files / f"manifests/{name}-spoken.csv" for split, name in names.items()
    }
    assert write_shards(manifests, tmp_path / "shards", shard_mb=0.1) > len(manifests)
    shards = [f"--data_folder={tmp_path / 'shards'}", "--corpus_options={}"]
    assert train_tiny(packed, "--corpus=shards", *shards, epoch) == 0, printed(packed)
    for name in ("model/model.safetensors", "train_log.txt", "wer_test.txt"):
        assert (packed / name).read_bytes() == (files / name).read_bytes()
