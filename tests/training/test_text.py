"""What a run makes of transcripts in other forms, other letter case, or empty ones."""

import csv
import json
import math
import unicodedata

import pytest
import soundfile
from sentencepiece import SentencePieceProcessor

from hyperconformer.corpora.manifest import (
    Utterance,
    prepare_split,
    read_manifest,
    write_manifest,
)
from hyperconformer.corpora.shards import write_shards
from hyperconformer.training.data import make_dataset, read_transcripts, train_tokenizer


def test_manifests_tokens_and_references_have_one_form(tmp_path):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, [0.1] * 8000, 16000)
    texts = ["CAFE\u0301 GO", "CAF\u00c9  GO\u2026", "A \u00bd", "\u200b"]
    utterances = [
        Utterance(str(i), "s", str(audio), text) for i, text in enumerate(texts)
    ]
    manifest = prepare_split("own", "train", utterances, tmp_path, tmp_path / "out")
    expected = ["CAF\u00c9 GO", "CAF\u00c9 GO...", "A 1\u20442"]
    assert [row["wrd"] for row in read_manifest(manifest)] == expected
    with open(tmp_path / "out/skipped_train.csv", encoding="utf-8") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["empty transcript"]
    # A manifest of somebody else's, in another form.
    rows = read_manifest(manifest)
    for row in rows:
        row["wrd"] = unicodedata.normalize("NFD", row["wrd"])
    theirs = write_manifest(tmp_path / "theirs.csv", rows)
    assert read_transcripts(theirs) == expected
    for unit in ("char", "bpe"):
        file = train_tokenizer(theirs, tmp_path / unit, unit, 20)
        tokenizer = SentencePieceProcessor(model_file=str(file))
        assert unit != "char" or file.name == f"{tokenizer.vocab_size()}_char.model"
        assert read_transcripts(theirs, tokenizer) == expected
        for example, words in zip(make_dataset(theirs, tokenizer, 16000), expected):
            assert example["words"] == words
            assert tokenizer.decode(example["tokens"].tolist()) == words


@pytest.mark.integration
def test_a_run_names_references_in_another_case_and_sets_without_words(
    train_tiny, printed, tmp_path
):
    files, packed = tmp_path / "files", tmp_path / "packed"
    epoch = "--number_of_epochs=1"
    assert train_tiny(files, epoch) == 0, printed(files)
    manifests = {}
    changes = {"train": str, "dev": str.lower, "test": lambda text: ""}
    for (name, change), split in zip(changes.items(), ("train", "valid", "test")):
        rows = read_manifest(files / f"manifests/{name}-spoken.csv")
        rows = [{**row, "wrd": change(row["wrd"])} for row in rows]
        manifests[split] = write_manifest(tmp_path / f"{split}.csv", rows)
    write_shards(manifests, tmp_path / "shards")
    shards = [f"--data_folder={tmp_path / 'shards'}", "--corpus_options={}"]
    status = train_tiny(packed, "--corpus=shards", *shards, epoch)
    assert status == 0, printed(packed)
    log = printed(packed)
    assert "valid: 3 of 3 entries are in another letter case" in log
    assert "test: " not in [line[:6] for line in log.splitlines() if "letter" in line]
    # In lower case, the errors are those of the same run in upper case.
    splits = [
        json.loads((run / "results.json").read_text())["splits"]
        for run in (files, packed)
    ]
    assert splits[0]["valid"]["CER"] == splits[1]["valid"]["CER"] > 0
    assert math.isnan(splits[1]["test"]["WER"])
    assert math.isfinite(splits[1]["test"]["loss"])
    assert "references hold no words" in log
    assert (packed / "wer_test.txt").read_text().startswith("%WER nan [ ")
    rows = read_manifest(packed / "errors_test.csv")
    assert [row["words"] for row in rows] == ["0", "0"]
