"""The n-gram recipe: what it refuses, and its model where KenLM is compiled."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

SCRIPT = (
    pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/make_ngram.py"
)


def run(*arguments, path):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(path)},
    )


def make_corpus(folder):
    for split, text in (
        ("train-clean-5", "GO ON ZEBRA"),
        ("words-train", "PIECE"),
        ("dev-clean", "GO ON"),
    ):
        chapter = folder / split / "1" / "2"
        chapter.mkdir(parents=True)
        (chapter / "1-2.trans.txt").write_text(f"1-2-0000 {text}\n")
    return folder


def test_missing_programs_are_named(tmp_path):
    done = run(make_corpus(tmp_path), "text.txt", tmp_path / "lm", path=tmp_path)
    assert done.returncode == 1
    assert "lmplz, build_binary, query not on the PATH" in done.stderr


def test_pieces_of_sentences_are_no_sentences(tmp_path):
    read = runpy.run_path(str(SCRIPT))["_read_split_texts"]
    assert read(make_corpus(tmp_path), "*train*") == ["GO ON ZEBRA"]


@pytest.mark.skipif(shutil.which("lmplz") is None, reason="needs a compiled KenLM")
def test_rare_words_are_left_out_unless_the_training_set_has_them(tmp_path):
    text = tmp_path / "text.txt"
    sentences = ["GO HOME", "GO ON", "ON HOME GO", "RARE HOME ON GO GO"]
    text.write_text("\n".join(["STAY AT HOME", *8 * sentences, ""]))
    model = tmp_path / "lm"
    options = ["--order", 2, "--prune", 0, "--memory", "100M"]
    corpus = make_corpus(tmp_path / "corpus")
    done = run(corpus, text, model, *options, path=os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    words = (model / "words.txt").read_text().split()
    assert words == ["GO", "HOME", "ON", "RARE", "ZEBRA"]
    assert "Perplexity" in done.stdout and (model / "lm.bin").stat().st_size > 0
