"""AN4: its lists, its held-out speakers, its faults."""

import pathlib
import subprocess
import sys

import pytest

from hyperconformer.corpora import an4, prepare
from hyperconformer.corpora.manifest import read_manifest


def rows_of(manifests):
    return {split: read_manifest(path) for split, path in manifests.items()}


def speakers_of(rows):
    return {row["spk_id"] for row in rows}


def test_splits_and_held_out_speaker(an4_folder, tmp_path):
    rows = rows_of(prepare("an4", an4_folder, tmp_path / "out"))
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 18,
        "valid": 2,
        "test": 4,
    }
    assert speakers_of(rows["valid"]) == {"mexy"}
    assert rows["test"][0]["ID"] == "an0-fxyz-b"
    assert {row["wrd"] for part in rows.values() for row in part} == {"GO STOP"}


def test_held_out_speakers_by_name_and_by_number(an4_folder, tmp_path):
    out = tmp_path / "out"
    named = prepare("an4", str(an4_folder), str(out), valid_speakers=["mcxy", "maxy"])
    assert speakers_of(rows_of(named)["valid"]) == {"maxy", "mcxy"}
    counted = rows_of(prepare("an4", an4_folder, out, valid_speakers=3))
    assert len(speakers_of(counted["valid"])) == 3
    assert not speakers_of(counted["valid"]) & speakers_of(counted["train"])


def test_a_last_run_trains_on_everything(an4_folder, tmp_path):
    rows = rows_of(prepare("an4", an4_folder, tmp_path / "out", hold_out=False))
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 20,
        "valid": 2,
        "test": 4,
    }
    assert speakers_of(rows["valid"]) < speakers_of(rows["train"])


@pytest.mark.parametrize(
    "valid_speakers, message",
    [
        (["nobody"], "unknown valid_speakers: nobody; known.*maxy"),
        (0, "from 1 to 9, got 0"),
        (10, "from 1 to 9, got 10"),
    ],
)
def test_wrong_held_out_speakers(valid_speakers, message, an4_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare("an4", an4_folder, tmp_path, valid_speakers=valid_speakers)


@pytest.mark.parametrize(
    "missing",
    [".", "etc/an4_test.fileids", "etc/an4_train.transcription", "wav/an4test_clstk"],
)
def test_missing_parts_are_named(missing, an4_folder, tmp_path):
    path = an4_folder / missing
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        prepare("an4", an4_folder, tmp_path / "out")
    assert str(path) in str(error.value)
    assert "wav/an4{,test}_clstk/SPEAKER" in str(error.value)
    assert "Carnegie Mellon University" in str(error.value)


def test_faults_are_skipped(an4_folder, tmp_path, tone):
    train = an4_folder / "wav" / "an4_clstk"
    (train / "maxy" / "an0-maxy-b.wav").unlink()
    tone(train / "maxy" / "stray.wav")
    transcription = an4_folder / "etc" / "an4_train.transcription"
    lines = transcription.read_text().splitlines()
    lines[3] = "<s> </s> (an1-mbxy-b)"
    lines[4] = "no name at all"
    lines += ["<s> GO </s> (unlisted-mcxy-b)", ""]
    transcription.write_text("\n".join(lines))
    manifests = prepare("an4", an4_folder, tmp_path / "out")
    skipped = (tmp_path / "out" / "skipped_train.csv").read_text().splitlines()[1:]
    reasons = {line.split(",")[0]: line.split(",")[2] for line in skipped}
    assert reasons == {
        "an0-maxy-b": "transcript without audio",
        "stray": "audio without transcript",
        "an1-mbxy-b": "empty transcript",
        "an0-mcxy-b": "audio without transcript",
        "unlisted-mcxy-b": "transcript without audio",
        "an4_train.transcription:5": "malformed transcript line",
    }
    assert len(read_manifest(manifests["train"])) == 15


def test_other_suffixes_and_their_order(an4_folder, tmp_path, tone):
    speaker = an4_folder / "wav" / "an4_clstk" / "maxy"
    (speaker / "an0-maxy-b.wav").unlink()
    tone(speaker / "an0-maxy-b.sph", format="NIST")
    tone(speaker / "an1-maxy-b.flac")
    rows = read_manifest(prepare("an4", an4_folder, tmp_path / "out")["train"])
    names = [row["wav"].rsplit("/", 1)[1] for row in rows[:2]]
    assert names == ["an0-maxy-b.sph", "an1-maxy-b.wav"]


@pytest.mark.slow
def test_the_whole_corpus(whole_an4, tmp_path):
    rows = rows_of(prepare("an4", whole_an4, tmp_path))
    speakers = {split: speakers_of(part) for split, part in rows.items()}
    assert len(rows["train"]) + len(rows["valid"]) == 948
    assert len(rows["test"]) == 130
    assert sum(len(row["wrd"].split()) for row in rows["test"]) == 773
    assert [len(speakers[split]) for split in ("train", "valid", "test")] == [66, 8, 10]
    assert not speakers["train"] & speakers["valid"]
    assert not (speakers["train"] | speakers["valid"]) & speakers["test"]
    assert not list(tmp_path.glob("skipped_*"))


def test_transcription_lines(tmp_path):
    path = tmp_path / "a.transcription"
    path.write_text("<s> A B </s> (x-1)\nC D (x-2)\n(x-3)\n<s> E(F) </s> (x-4)\nG\n")
    texts, malformed = an4.read_transcription(path)
    assert texts == {"x-1": "A B", "x-2": "C D", "x-3": "", "x-4": "E(F)"}
    assert malformed == ["a.transcription:5"]


@pytest.mark.integration
def test_the_training_set_joins_librispeech(an4_folder, libri_folder, tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    script = [sys.executable, root / "recipes/LibriSpeech/add_an4.py"]
    done = subprocess.run(
        [*script, an4_folder, libri_folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    merge = {"all": ["train-clean-100", "an4-train"]}
    manifests = prepare(
        "librispeech",
        libri_folder,
        tmp_path / "out",
        splits=merge["all"],
        merge=merge,
    )
    rows = read_manifest(manifests["all"])
    assert len(rows) == 3 + 20
    assert {row["wrd"] for row in rows[3:]} == {"GO STOP"}
    assert len({row["spk_id"] for row in rows[3:]}) == 10
    done = subprocess.run(
        [*script, tmp_path / "no", libri_folder], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"add_an4.py: {tmp_path / 'no'} does not exist")
