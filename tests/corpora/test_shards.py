"""Shards hold what the files hold, in the same order, byte for byte."""

import re
import tarfile

import pytest
import s3fs
import torch

from hyperconformer.audio import AudioError, read_audio
from hyperconformer.cli.main import main
from hyperconformer.corpora import prepare
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.corpora.shards import write_shards
from hyperconformer.training.data import (
    load_tokenizer,
    make_dataset,
    train_loader_options,
    train_tokenizer,
)

MERGE = {"train": ["train-clean-100", "train-clean-360"]}


@pytest.fixture
def shards(libri_folder, tmp_path, capsys):
    """Two utterances a shard, as a command makes them."""
    megabytes = 1.5 * next(libri_folder.rglob("*.flac")).stat().st_size / 1e6
    command = ["shards", "librispeech", libri_folder, tmp_path / "shards"]
    assert main([*map(str, command), f"--shard-mb={megabytes}"]) == 0
    assert "dev-clean in 6 shards" in capsys.readouterr().out
    return tmp_path / "shards"


def test_the_same_utterances_in_the_same_order(shards, libri_folder, tmp_path):
    options = {"merge": MERGE}
    files = prepare("librispeech", libri_folder, tmp_path / "a", **options)
    packed = prepare("shards", shards, tmp_path / "b", **options)
    assert set(packed) == set(files)
    for split in files:
        pairs = zip(read_manifest(files[split]), read_manifest(packed[split]))
        for file, member in pairs:
            wav, place = file.pop("wav"), member.pop("wav")
            assert file == member and ".tar:" in place
            assert torch.equal(read_audio(wav), read_audio(place))
    assert len(read_manifest(packed["train"])) == 6


def test_members_are_named_as_webdataset_names_them(shards):
    with tarfile.open(shards / "dev-clean-000000.tar") as tar:
        names = tar.getnames()
        text = tar.extractfile(names[1]).read()
    assert names[:2] == ["84-7-0000.flac", "84-7-0000.txt"] and len(names) == 4
    assert text == b"UTTERANCE OF DEV-CLEAN"


def test_the_same_corpus_gives_the_same_bytes(shards, libri_folder, tmp_path):
    again = tmp_path / "again"
    manifests = prepare("librispeech", libri_folder, tmp_path / "a")
    write_shards(manifests, again)
    write_shards(manifests, again)
    first = {file.name: file.read_bytes() for file in again.iterdir()}
    write_shards(manifests, tmp_path / "other")
    assert first == {f.name: f.read_bytes() for f in (tmp_path / "other").iterdir()}
    assert len(first) == 6


def test_what_is_missing_is_named(shards, tmp_path):
    shard = shards / "dev-clean-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600])
    with pytest.raises(ValueError, match="dev-clean-000001.tar is cut off: 600 of"):
        prepare("shards", shards, tmp_path / "b")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="dev-clean-000001.tar does not exist"):
        prepare("shards", shards, tmp_path / "b")
    with pytest.raises(AudioError, match="no such audio file: .*000001.tar"):
        read_audio(f"{shard}:512:9")
    with pytest.raises(FileNotFoundError, match="test-other.csv does not exist"):
        prepare("shards", shards, tmp_path / "b", splits=["test-other"])
    with pytest.raises(ValueError, match="made of some of the splits dev-clean"):
        prepare("shards", shards, tmp_path / "b", merge={"train": ["gone"]})


@pytest.fixture
def stored(shards, object_store, tmp_path):
    """The same in an object store."""
    return object_store.upload(shards, tmp_path.name)


@pytest.mark.integration
def test_an_object_store_gives_what_the_disk_gives(shards, stored, tmp_path):
    options = {"merge": MERGE}
    local = prepare("shards", shards, tmp_path / "a", **options)
    remote = prepare("shards", f"{stored}/", tmp_path / "b", **options)
    assert list(remote) == list(local)
    for split in local:
        content = local[split].read_text()
        assert remote[split].read_text() == content.replace(str(shards), stored)
    tokenizer = load_tokenizer(
        train_tokenizer(local["train"], tmp_path / "tokenizer", "char", 0)
    )
    one, other = (
        list_batches(manifests["train"], tokenizer, workers)
        for manifests, workers in ((local, 0), (remote, 2))
    )
    assert [batch.id for batch in one] == [batch.id for batch in other] != []
    for a, b in zip(one, other):
        assert torch.equal(a.sig.data, b.sig.data)
        assert torch.equal(a.sig.lengths, b.sig.lengths)
        assert torch.equal(a.tokens.data, b.tokens.data)


def list_batches(manifest, tokenizer, workers):
    """An epoch of the training set, read once before by this process."""
    dataset = make_dataset(manifest, tokenizer, 16000, sort="ascending")
    dataset[0]  # a client is open when the loader's processes are forked
    options = train_loader_options(
        dataset,
        max_batch_s=100,
        max_batch_utterances=2,
        seed=1,
        workers=workers,
        join_fraction=0,
    )
    return list(torch.utils.data.DataLoader(dataset, **options))


def test_what_is_missing_in_an_object_store_is_named(shards, stored, tmp_path):
    client = s3fs.S3FileSystem()
    shard = f"{stored}/dev-clean-000001.tar"
    client.pipe_file(shard, bytes(600))
    with pytest.raises(ValueError, match=f"^{shard} is cut off: 600 of"):
        prepare("shards", stored, tmp_path / "b")
    client.rm_file(shard)
    with pytest.raises(FileNotFoundError, match=f"^{shard} does not exist.\nExpected"):
        prepare("shards", stored, tmp_path / "b")
    with pytest.raises(AudioError, match=f"^no such audio file: {shard}$"):
        read_audio(f"{shard}:512:9")
    with pytest.raises(FileNotFoundError, match=f"^{stored}/test.csv does not exist"):
        prepare("shards", stored, tmp_path / "b", splits=["test"])
    with pytest.raises(FileNotFoundError, match="^s3://nowhere/shards does not exist"):
        prepare("shards", "s3://nowhere/shards", tmp_path / "b")


def test_shards_are_not_written_into_an_object_store(
    libri_folder, tmp_path, monkeypatch, capsys
):
    with pytest.raises(ValueError, match="got s3://bucket/shards: copy them"):
        write_shards({}, "s3://bucket/shards")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["shards", "librispeech", str(libri_folder), "s3://bucket/a"]) == 1
    assert "got s3://bucket/a: copy them" in capsys.readouterr().err
    assert not any((tmp_path / "work").iterdir())


def test_a_folder_without_a_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/SPLIT.csv does not"):
        prepare("shards", tmp_path, tmp_path / "b")


def test_a_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=re.escape("shard_mb must be above 0, got 0")):
        write_shards({}, tmp_path, 0)
