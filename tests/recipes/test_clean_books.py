"""Books become sentences; what must not be in a language model's text is left out."""

import pathlib
import runpy
import subprocess
import sys

import pytest

SCRIPT = (
    pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/clean_books.py"
)
HEADER = (
    "The Project Gutenberg EBook\n\n*** START OF THIS PROJECT GUTENBERG EBOOK ***\n"
)
FOOTER = "\n\nEnd of Project Gutenberg's Book, by Her\n\nDonations are welcome.\n"
STORY = """CHAPTER I

"Is it you, Mr. Brown?" said the Café's owner. It _was_ he,
and he'd come with J. Smith!

He was born in 1815. The end of the day was a sad one for all of them.

Contents of the volume
"""
STORY_SENTENCES = [
    "IS IT YOU MISTER BROWN SAID THE CAFE'S OWNER",
    "IT WAS HE AND HE'D COME WITH J SMITH",
    "THE END OF THE DAY WAS A SAD ONE FOR ALL OF THEM",
]


@pytest.fixture
def books(tmp_path):
    folder = tmp_path / "books/Her"
    folder.mkdir(parents=True)

    def write(name, text, encoding="utf-8"):
        (folder / f"{name}.txt").write_bytes((HEADER + text + FOOTER).encode(encoding))

    return write


def clean(tmp_path, *options):
    command = [sys.executable, SCRIPT, tmp_path / "books", tmp_path / "text", *options]
    return subprocess.run(command, capture_output=True, text=True)


def lines(tmp_path):
    return (tmp_path / "text").read_text().splitlines()


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_sentences_in_librispeechs_form(tmp_path, books, encoding):
    books("story", STORY, encoding)
    done = clean(tmp_path)
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path) == STORY_SENTENCES
    assert "million words of 1 books" in done.stdout


def test_other_languages_and_further_editions_are_left_out(tmp_path, books):
    books("a", STORY)
    books("b, second edition", STORY + "\n\nThis edition is the second.\n")
    books("livre", "Il était une fois une bonne vieille dame. Elle dormait bien.\n")
    done = clean(tmp_path)
    assert lines(tmp_path) == STORY_SENTENCES
    assert "left out, not English prose: 1 books" in done.stdout
    assert "left out, known: 1 books" in done.stdout


def test_known_sentences_are_left_out(tmp_path, books):
    books("story", STORY + "\n\nThe cat was in the house and it was warm there.\n")
    (tmp_path / "known").write_text("\n".join([STORY_SENTENCES[-1], ""]))
    clean(tmp_path, "--known", tmp_path / "known")
    new = "THE CAT WAS IN THE HOUSE AND IT WAS WARM THERE"
    assert lines(tmp_path) == [*STORY_SENTENCES[:-1], new]


def make_split(folder, *texts):
    chapter = folder / "test-clean/1/2"
    chapter.mkdir(parents=True)
    rows = [f"1-2-{number:04} {text}\n" for number, text in enumerate(texts)]
    (chapter / "1-2.trans.txt").write_text("".join(rows))
    return folder / "test-clean"


def test_books_that_are_recognised_are_left_out(tmp_path, books):
    """A sentence that shares eight words, and a book that shares more."""
    books("story", STORY)
    books("other", "It is the end of the day was a sad song that I liked to hear.\n")
    split = make_split(tmp_path, "AND THE END OF THE DAY WAS A SAD ONE FOR ALL OF THEM")
    done = clean(tmp_path, "--keep-out", split)
    assert "left out, shared with a split: 1 books\n  story\n" in done.stdout
    assert lines(tmp_path) == []
    split = make_split(tmp_path / "2", "THE END OF THE DAY WAS A SAD NUMBER")
    done = clean(tmp_path, "--keep-out", split)
    assert "left out, shared with a split: 0 books" in done.stdout
    assert lines(tmp_path) == STORY_SENTENCES[:-1]


def test_missing_books_and_splits_are_named(tmp_path, books):
    done = clean(tmp_path)
    assert done.returncode == 1 and "no .txt files in" in done.stderr
    books("story", STORY)
    done = clean(tmp_path, "--keep-out", tmp_path)
    assert done.returncode == 1 and "no */*/*.trans.txt in" in done.stderr


def test_eight_words_make_a_sequence():
    sequences = runpy.run_path(str(SCRIPT))["_sequences"]
    assert sequences(list("ABCDEFGHI")) == {"A B C D E F G H", "B C D E F G H I"}
    assert sequences(list("ABCDEFG")) == set()
