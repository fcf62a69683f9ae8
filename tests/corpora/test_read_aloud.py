"""A LibriSpeech of synthetic voices, in the layout of the real one."""

import pytest
from speechbrain.dataio.dataio import load_data_csv

from hyperconformer.cli.main import main
from hyperconformer.corpora import librispeech

TEXTS = {
    "84-121123": ["GO", "DO YOU HEAR", "BUT IN LESS THAN FIVE MINUTES IT WAS TOO LATE"],
    "174-50561": ["FORGOTTEN TOO", "THE NAME OF GILLIAN"],
    "251-118436": ["ON THE RAFT", "IN THE EVENING"],
    "422-122949": ["TO CLOSE THE DAY"],
}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """Transcripts and metadata of four readers."""
    folder = tmp_path_factory.mktemp("text")
    speakers, chapters = ["; comment"], ["; comment"]
    for name, texts in TEXTS.items():
        reader, chapter = name.split("-")
        sex = "F" if reader == "84" else "M"
        speakers.append(f"{reader:4} | {sex} | dev-clean | 8.02 | A Name | with a bar")
        chapters.append(f"{chapter} | {reader} | 8.02 | dev-clean | 1 | 2 | I | A Book")
        place = folder / "dev-clean" / reader / chapter
        place.mkdir(parents=True)
        lines = {f"{name}-{n:04d}": text for n, text in enumerate(texts)}
        librispeech.write_transcripts(place / f"{name}.trans.txt", lines)
    (folder / "SPEAKERS.TXT").write_text("\n".join(speakers))
    (folder / "CHAPTERS.TXT").write_text("\n".join(chapters))
    return folder


def read_aloud(text_folder, data_folder, *more):
    splits = ["--splits", "train-clean-100", "dev-clean"]
    return main(["read-aloud", str(text_folder), str(data_folder), *splits, *more])


def test_the_layout_is_librispeechs_own(text_folder, tmp_path, capsys):
    few = ["--speakers", "2", "--utterances", "2", "--max-words", "5"]
    assert read_aloud(text_folder, tmp_path / "corpus", *few) == 0
    assert "minutes of speech" in capsys.readouterr().out
    manifests = librispeech.prepare(tmp_path / "corpus", tmp_path / "manifests")
    rows = {name: load_data_csv(str(file)) for name, file in manifests.items()}
    # Dealt out in turn, by number; the first two short sentences of each.
    assert {row["spk_id"] for row in rows["train-clean-100"].values()} == {"84", "251"}
    assert {row["spk_id"] for row in rows["dev-clean"].values()} == {"174", "422"}
    assert rows["train-clean-100"]["84-121123-0001"]["wrd"] == "DO YOU HEAR"
    assert "84-121123-0002" not in rows["train-clean-100"]
    total_s = sum(
        float(row["duration"]) for split in rows.values() for row in split.values()
    )
    speakers = (tmp_path / "corpus/SPEAKERS.TXT").read_text().splitlines()
    assert [line.split(" | ")[2] for line in speakers] == [
        *("train-clean-100", "dev-clean", "train-clean-100", "dev-clean")
    ]
    assert speakers[0].endswith("| A Name | with a bar")
    minutes = sum(float(line.split(" | ")[3]) for line in speakers)
    assert minutes == pytest.approx(total_s / 60, abs=0.005 * len(speakers))
    assert len((tmp_path / "corpus/CHAPTERS.TXT").read_text().splitlines()) == 4


def test_the_same_arguments_give_the_same_bytes(text_folder, tmp_path):
    for name in ("one", "two"):
        few = ["--speakers", "1", "--utterances", "1"]
        assert read_aloud(text_folder, tmp_path / name, *few) == 0
    files = sorted((tmp_path / "one").rglob("*.flac"))
    assert len(files) == 2
    for file in files:
        twin = tmp_path / "two" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == twin.read_bytes()


def test_mistakes_are_named(text_folder, tmp_path, capsys):
    assert read_aloud(text_folder, tmp_path, "--speakers", "3") == 1
    assert "of 4 readers; 2 splits of 3 need 6" in capsys.readouterr().err
    assert read_aloud(tmp_path / "none", tmp_path) == 1
    assert "SPEAKERS.TXT" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--speakers", "--utterances", "--max-words"])
def test_numbers_below_one_are_named(text_folder, tmp_path, capsys, option):
    assert read_aloud(text_folder, tmp_path / "corpus", option, "0") == 1
    name = option[2:].replace("-", "_")
    assert f"{name} must be at least 1, got 0" in capsys.readouterr().err
