"""The embedded corpus: who says what, and that it is always the same."""

import hashlib
import random
import signal
import subprocess
import sys
import time

import pytest
import soundfile

from hyperconformer.corpora import librispeech, prepare
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.corpora.synthetic import spoken

pytest.importorskip("espeakng_loader")

TINY = {"train_utterances": 6, "valid_utterances": 2, "test_utterances": 2}
SIZES = {"train": 6, "valid": 2, "test": 2}


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A tiny corpus, and its manifests."""
    folder = tmp_path_factory.mktemp("spoken")
    return folder, prepare("spoken", folder, folder / "manifests", **TINY)


def test_manifests(corpus):
    _, manifests = corpus
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    assert {split: len(part) for split, part in rows.items()} == SIZES
    speakers = [{row["spk_id"] for row in part} for part in rows.values()]
    assert not set.intersection(*speakers)
    for row in sum(rows.values(), []):
        info = soundfile.info(row["wav"])
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        assert info.duration == pytest.approx(float(row["duration"]), abs=1e-5)
        assert 0.5 < info.duration < 8


def test_librispeech_preparation_reads_it(corpus, tmp_path):
    folder, manifests = corpus
    splits = ["train-spoken", "dev-spoken", "test-spoken"]
    read = librispeech.prepare(folder, tmp_path, splits=splits)
    assert read["dev-spoken"].read_bytes() == manifests["valid"].read_bytes()
    assert "2001 | M | dev-spoken   |    0.0" in (folder / "SPEAKERS.TXT").read_text()


def test_the_same_options_give_the_same_bytes(corpus, tmp_path):
    folder, _ = corpus
    spoken.synthesize_corpus(tmp_path, SIZES, workers=1)
    made = digests(tmp_path)
    assert made == {name: digests(folder)[name] for name in made}
    assert sum(name.endswith(".flac") for name in made) == 10


def test_another_seed_gives_other_sentences(corpus, tmp_path):
    folder, _ = corpus
    spoken.synthesize_corpus(tmp_path, SIZES, seed=1)
    name = "train-spoken/1001/1/1001-1-0000.flac"
    assert digests(tmp_path)[name] != digests(folder)[name]


def test_only_what_is_missing_is_made(tmp_path, monkeypatch):
    spoken.synthesize_corpus(tmp_path, SIZES)
    whole = digests(tmp_path)
    lost = tmp_path / "train-spoken/1003/1/1003-1-0000.flac"
    lost.unlink()
    said = []
    speak = spoken.speak
    monkeypatch.setattr(
        spoken, "speak", lambda text, *a, **k: said.append(text) or speak(text, *a, **k)
    )
    spoken.synthesize_corpus(tmp_path, SIZES)
    assert len(said) == 1
    spoken.synthesize_corpus(tmp_path, SIZES)
    assert len(said) == 1
    assert digests(tmp_path) == whole


def test_other_options_replace_what_they_made(tmp_path):
    spoken.synthesize_corpus(tmp_path, SIZES)
    spoken.synthesize_corpus(tmp_path, {"train": 3, "valid": 1, "test": 1}, seed=2)
    assert len(list(tmp_path.rglob("*.flac"))) == 5


def test_a_folder_of_others_is_left_alone(tmp_path):
    theirs = tmp_path / "train-spoken" / "mine.flac"
    theirs.parent.mkdir()
    theirs.write_bytes(b"precious")
    with pytest.raises(ValueError, match="was not made here"):
        spoken.synthesize_corpus(tmp_path, SIZES)
    assert theirs.read_bytes() == b"precious"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_empty_splits_are_refused(split, tmp_path):
    with pytest.raises(ValueError, match=f"{split}_utterances must be at least 1"):
        prepare("spoken", tmp_path, tmp_path, **{**TINY, f"{split}_utterances": 0})


PROGRAM = """
import sys
from hyperconformer.corpora.synthetic import spoken
spoken.synthesize_corpus(sys.argv[1], {"train": 20, "valid": 2, "test": 2}, workers=2)
"""


@pytest.mark.integration
def test_a_killed_synthesis_goes_on(tmp_path):
    folder, reference = tmp_path / "killed", tmp_path / "reference"
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)])
    end = time.monotonic() + 60
    while len(list(folder.rglob("*.flac"))) < 5:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}
    assert 5 <= len(before) < 24

    sizes = {"train": 20, "valid": 2, "test": 2}
    spoken.synthesize_corpus(folder, sizes)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    spoken.synthesize_corpus(reference, sizes)
    assert digests(folder) == digests(reference)


def plan(split, size):
    return spoken.plan_split("data", split, size)


def test_voices_are_held_out():
    timbres = {
        split: {line.voice.split("+")[1] for line in plan(split, 1600)}
        for split in spoken.SPLITS
    }
    assert not timbres["train"] & timbres["valid"]
    assert not timbres["train"] & timbres["test"]
    assert not timbres["valid"] & timbres["test"]
    speakers = [{line.speaker for line in plan(s, 1600)} for s in spoken.SPLITS]
    assert [len(part) for part in speakers] == [160, 32, 40]
    assert len(set.union(*speakers)) == 232


def test_sentences():
    texts = {
        "train": [line.text for line in plan("train", 1600)],
        "test": [line.text for line in plan("test", 150)],
    }
    words = {word for text in texts["train"] for word in text.split()}
    assert 60 <= len(words) <= 110
    assert all(word.isalpha() and word.isupper() for word in words)
    assert all(2 <= len(text.split()) <= 8 for text in sum(texts.values(), []))
    assert {word for text in texts["test"] for word in text.split()} <= words
    seen = sum(text in set(texts["train"]) for text in texts["test"])
    assert seen < 0.5 * len(texts["test"])


def test_more_utterances_begin_with_the_same_ones():
    assert plan("train", 200)[:50] == plan("train", 50)


def test_every_symbol_of_the_grammar_is_spoken():
    source = random.Random(0)
    said = " ".join(spoken.make_sentence(source) for _ in range(20000)).split()
    terminals = {
        word
        for templates in spoken.GRAMMAR.values()
        for template in templates
        for word in template.split()
        if not word.startswith("{")
    }
    assert set(said) == terminals
