"""Corpora of one's own: CSV and JSON Lines manifests, and functions after !name:."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import soundfile
import torch
from char_tokenizer import make_tokenizer

from hyperconformer.audio import read_audio
from hyperconformer.corpora import load_corpus, prepare
from hyperconformer.corpora.csv_manifests import list_utterances
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.corpora.shards import write_shards
from hyperconformer.evaluation.error_rates import evaluate

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = "ID,duration,wav,spk_id,wrd\n"


@pytest.fixture
def own(tmp_path, tone):
    """A folder of three clips of 0.5, 0.6 and 0.7 s, and one recording of 4 s."""
    folder = tmp_path / "own"
    for number in range(3):
        tone(folder / f"clips/{number}.wav", 0.5 + 0.1 * number)
    tone(folder / "talk.flac", 4.0)
    return folder


def skipped(folder, split):
    with open(folder / f"skipped_{split}.csv", newline="", encoding="utf-8") as file:
        return {
            row["ID"]: (row["reason"], row["detail"]) for row in csv.DictReader(file)
        }


def test_csv_paths_are_relative_to_the_manifest(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid", "test"):
        (own / f"{split}.csv").write_text(
            f"{HEADER}a,99,clips/0.wav,s,GO\nb,,$data_root/clips/1.wav,s,STOP NOW\n"
            f"c,1,{own}/clips/2.wav,t,GO ON\n"
        )
    manifests = prepare("csv", "own", "out")
    assert set(manifests) == {"train", "valid", "test"}
    rows = read_manifest(manifests["train"])
    assert [row["wav"] for row in rows] == [f"{own}/clips/{n}.wav" for n in range(3)]
    # Measured, whatever the manifest says.
    assert [row["duration"] for row in rows] == ["0.5", "0.6", "0.7"]
    assert [row["wrd"] for row in rows] == ["GO", "STOP NOW", "GO ON"]
    assert [row["spk_id"] for row in rows] == ["s", "s", "t"]


def test_a_manifest_may_be_short_of_all_but_three_columns(own, tmp_path):
    # A byte order mark and blanks after commas, as spreadsheets and old recipes write.
    text = '﻿ID, wav, wrd\na, clips/0.wav, "YES, PLEASE"\n'
    (own / "train.csv").write_text(text, encoding="utf-8")
    rows = read_manifest(prepare("csv", own, tmp_path / "out")["train"])
    assert [(row["ID"], row["spk_id"], row["wrd"]) for row in rows] == [
        ("a", "", "YES, PLEASE")
    ]


def test_a_path_from_the_working_folder_is_found_too(own, tmp_path, monkeypatch):
    monkeypatch.chdir(own / "clips")
    (own / "train.csv").write_text("ID,wav,wrd\na,0.wav,GO\n")
    rows = read_manifest(prepare("csv", own, tmp_path / "out")["train"])
    assert pathlib.Path(rows[0]["wav"]) == own / "clips/0.wav"


def test_csv_rows_that_cannot_be_used_are_named(own, tmp_path):
    (own / "clips/empty.wav").touch()
    (own / "clips/text.wav").write_text("no audio")
    (own / "train.csv").write_text(
        HEADER + "a,1,clips/0.wav,s,GO\n"
        "a,1,clips/1.wav,s,GO\n"
        "gone,1,clips/9.wav,s,GO\n"
        "nowhere,1,,s,GO\n"
        "comma,1,clips/1.wav,s,YES, PLEASE\n"
        "short,1,clips/1.wav\n"
        ",1,clips/1.wav,s,GO\n"
        "mute,1,clips/1.wav,s,\n"
        "other,1,$audio/1.wav,s,GO\n"
        "empty,1,clips/empty.wav,s,GO\n"
        "text,1,clips/text.wav,s,GO\n"
        "b,1,clips/2.wav,s,STOP\n"
    )
    manifests = prepare("csv", own, tmp_path / "out")
    assert [row["ID"] for row in read_manifest(manifests["train"])] == ["a", "b"]
    reasons = skipped(tmp_path / "out", "train")
    assert {name: reason for name, (reason, _) in reasons.items()} == {
        "a": "repeated ID",
        "gone": "transcript without audio",
        "nowhere": "transcript without audio",
        "train.csv:6": "wrong number of columns",
        "train.csv:7": "wrong number of columns",
        "train.csv:8": "no ID",
        "mute": "empty transcript",
        "other": "transcript without audio",
        "empty": "empty file",
        "text": "unreadable audio",
    }
    assert reasons["gone"][1] == "no such file"
    assert "contain a comma" in reasons["train.csv:6"][1]


@pytest.mark.parametrize(
    "content,message",
    [
        (b"ID,path,sentence\na,b.wav,GO\n", "train.csv should hold .*path, sentence"),
        (b"ID;wav;wrd\na;b.wav;GO\n", "should hold utterances .*ID;wav;wrd"),
        (b"", "holds 0 with: none"),
        (b"ID,wav,wrd\n", "holds 0 with: ID, wav, wrd"),
        (b"ID,wav,wrd\na,b.wav,\xe9\n", "train.csv is not UTF-8"),
        (b'ID,wav,wrd\na,b.wav,"GO\n', "train.csv is not a CSV file"),
        (b"ID,wav,wrd,wrd\na,b.wav,GO,NO\n", "train.csv has these columns twice: wrd"),
        (b"ID,wav,start,stop,wrd\na,b.wav,0,99,GO\n", "start and stop, .*#t=START,END"),
        (b"ID,wav,wrd\na,b.wav,GO\n", "all 1 utterances were skipped: 1 transcript wi"),
    ],
)
def test_what_is_no_csv_manifest_is_refused(own, tmp_path, content, message):
    (own / "train.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare("csv", own, tmp_path / "out")


def test_splits_may_have_other_files_and_be_merged(own, tmp_path):
    elsewhere = tmp_path / "manifests"
    elsewhere.mkdir()
    for number, name in enumerate(("a", "b", "dev")):
        (elsewhere / f"{name}.csv").write_text(
            f"ID,wav,wrd\n{name},$data_root/clips/{number}.wav,GO\n"
        )
    manifests = prepare(
        "csv",
        own,
        tmp_path / "out",
        splits={name: f"../manifests/{name}.csv" for name in ("a", "b", "dev")},
        merge={"train": ["a", "b"]},
    )
    assert [row["ID"] for row in read_manifest(manifests["train"])] == ["a", "b"]
    assert set(manifests) == {"a", "b", "dev", "train"}
    # By name, the others are not touched.
    (elsewhere / "dev.csv").rename(own / "dev.csv")
    (own / "speakers.csv").write_text("name,age\nA,40\n")
    assert set(prepare("csv", own, tmp_path / "2", splits=["dev"])) == {"dev"}
    with pytest.raises(ValueError, match="speakers.csv should hold utterances"):
        prepare("csv", own, tmp_path / "2")


def test_missing_files_say_what_belongs_there(own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.csv"):
        prepare("csv", own, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"\*\.jsonl(.|\n)*{splits: {train"):
        prepare("jsonl", own, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="valid.csv does not exist"):
        prepare("csv", own, tmp_path / "out", splits=["valid"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        prepare("csv", tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="talk.flac is a file: name its folder"):
        prepare("csv", own / "talk.flac", tmp_path / "out")


def test_a_users_manifest_is_never_overwritten(own):
    text = "ID,wav,wrd\na,clips/0.wav,GO\n"
    (own / "train.csv").write_text(text)
    with pytest.raises(ValueError, match="would overwrite it"):
        prepare("csv", own, own)
    assert (own / "train.csv").read_text() == text


def test_the_manifests_of_a_run_are_a_corpus(own, tmp_path):
    (own / "train.csv").write_text("ID,wav,wrd\na,clips/0.wav,GO\nb,gone.wav,GO\n")
    first = prepare("csv", own, tmp_path / "1")
    # Beside it lies the list of what was skipped.
    again = prepare("csv", tmp_path / "1", tmp_path / "2")
    assert set(again) == {"train"}
    assert read_manifest(again["train"]) == read_manifest(first["train"])


def write_jsonl(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_jsonl_reads_files_and_parts_of_files(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    part = {"audio_filepath": "talk.flac", "offset": 1.25, "duration": 0.8}
    write_jsonl(
        own / "train.jsonl",
        [
            {"audio_filepath": "clips/0.wav", "text": "go", "speaker": 7},
            {"audio_filepath": f"{own}/clips/1.wav", "duration": 9, "text": "stop"},
            {**part, "text": "go on"},
            {"audio_filepath": "clips/2.wav", "offset": None, "text": "no"},
            {"audio_filepath": "talk.flac", "duration": 1.5, "text": "well"},
        ],
    )
    rows = read_manifest(prepare("jsonl", "own", "out")["train"])
    outside = str(own).lstrip("/")
    assert [row["ID"] for row in rows] == [
        "clips/0",
        f"{outside}/clips/1",
        "talk-1250-2050",
        "clips/2",
        "talk",
    ]
    # A file may be shorter than a duration without offset, and is cut if it is longer.
    assert [row["duration"] for row in rows] == ["0.5", "0.6", "0.8", "0.7", "1.5"]
    assert [row["spk_id"] for row in rows] == ["7", "", "", "", ""]
    whole = read_audio(own / "talk.flac")
    assert torch.equal(read_audio(rows[4]["wav"]), whole[:24000])
    assert torch.equal(read_audio(rows[2]["wav"]), whole[20000:32800])


def test_jsonl_lines_that_cannot_be_used_are_named(own, tmp_path):
    good = {"audio_filepath": "clips/0.wav", "text": "go"}
    talk = {"audio_filepath": "talk.flac", "text": "go"}
    lines = [
        json.dumps(good),
        json.dumps(good),
        '{"audio_filepath": "a.wav", ',
        "[1]",
        json.dumps({"audio_filepath": "clips/1.wav", "sentence": "go"}),
        json.dumps({**good, "text": None}),
        json.dumps({**good, "audio_filepath": ""}),
        json.dumps({**good, "audio_filepath": "gone.wav"}),
        json.dumps({**talk, "offset": 1.0}),
        json.dumps({**talk, "offset": -1, "duration": 2}),
        json.dumps({**talk, "offset": "1", "duration": 2}),
        json.dumps({**talk, "offset": float("nan"), "duration": 2}),
        json.dumps({**talk, "offset": 3.5, "duration": 1.0}),
        json.dumps({**talk, "offset": 5, "duration": 1.0}),
        json.dumps({**talk, "duration": "2"}),
        json.dumps({**talk, "duration": 0}),
        json.dumps({**talk, "duration": True}),
        # Rounded times reach a little over the end.
        json.dumps({**talk, "offset": 3.0, "duration": 1.01}),
        "",
    ]
    (own / "train.jsonl").write_text("\n".join(lines))
    rows = read_manifest(prepare("jsonl", own, tmp_path / "out")["train"])
    assert [row["ID"] for row in rows] == ["clips/0", "talk-3000-4010"]
    assert rows[1]["duration"] == "1.0" and len(read_audio(rows[1]["wav"])) == 16000
    reasons = skipped(tmp_path / "out", "train")
    assert {name: reason for name, (reason, _) in reasons.items()} == {
        "clips/0": "repeated ID",
        "train.jsonl:3": "malformed JSON",
        "train.jsonl:4": "malformed JSON",
        "train.jsonl:5": "missing keys",
        "train.jsonl:6": "audio_filepath and text must be strings",
        "train.jsonl:7": "no audio_filepath",
        "gone": "transcript without audio",
        **{f"train.jsonl:{n}": "offset needs a duration" for n in range(9, 13)},
        **{f"train.jsonl:{n}": "invalid duration" for n in range(15, 18)},
        "talk-3500-4500": "segment outside the file",
        "talk-5000-6000": "segment outside the file",
    }
    assert reasons["train.jsonl:5"][1] == "text; it has: audio_filepath, sentence"
    assert "lasts 4.000 s" in reasons["talk-5000-6000"][1]


@pytest.mark.parametrize(
    "content", [b"", b'{"a": {"wav": "a.wav", "wrd": "GO"}}', b"[1, 2]", b"ID,wav\n"]
)
def test_what_is_no_jsonl_manifest_is_refused(own, tmp_path, content):
    (own / "train.jsonl").write_bytes(content)
    with pytest.raises(
        ValueError, match="one JSON object per line with the keys audio"
    ):
        prepare("jsonl", own, tmp_path / "out")


def test_shards_copy_a_file_that_is_no_longer_than_its_duration(own, tmp_path):
    row = {"audio_filepath": "clips/0.wav", "duration": 0.5, "text": "go"}
    write_jsonl(own / "train.jsonl", [row])
    manifests = prepare("jsonl", own, tmp_path / "out")
    assert write_shards(manifests, tmp_path / "shards", 1.0) == 1
    packed = prepare("shards", tmp_path / "shards", tmp_path / "again")
    [member] = read_manifest(packed["train"])
    [shard] = (tmp_path / "shards").glob("*.tar")
    file = (own / "clips/0.wav").read_bytes()
    assert file in shard.read_bytes()
    assert torch.equal(read_audio(member["wav"]), read_audio(own / "clips/0.wav"))


def test_shards_hold_parts_of_files(own, tmp_path):
    part = {"audio_filepath": "talk.flac", "duration": 0.5, "text": "go"}
    entries = [{**part, "offset": n / 2} for n in range(6)]
    write_jsonl(own / "train.jsonl", entries)
    manifests = prepare("jsonl", own, tmp_path / "out")
    # Each holds about an eighth of the file.
    size = (own / "talk.flac").stat().st_size
    assert write_shards(manifests, tmp_path / "shards", 0.2 * size / 1e6) == 3
    packed = prepare("shards", tmp_path / "shards", tmp_path / "again")
    pairs = zip(read_manifest(manifests["train"]), read_manifest(packed["train"]))
    for row, member in pairs:
        assert row["ID"] == member["ID"] and row["duration"] == member["duration"]
        assert torch.equal(read_audio(row["wav"]), read_audio(member["wav"]))


class Listener:
    """In the place of a recogniser: says what it was given."""

    def __init__(self):
        self.samples = []
        self.tokenizer = make_tokenizer("GO STOP")

    def transcribe_file(self, path):
        self.samples.append(len(read_audio(path)))
        return type("Transcription", (), {"text": "GO"})


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_evaluation_reads_the_same_manifests(own, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    manifest = own / f"test.{kind}"
    if kind == "csv":
        manifest.write_text(
            "ID,wav,wrd\na,clips/0.wav,GO\nb,$data_root/clips/1.wav,GO\n"
            'c,"talk.flac#t=1,2.5",STOP\n'
        )
    else:
        part = {"audio_filepath": "talk.flac", "offset": 1, "duration": 1.5}
        write_jsonl(
            manifest,
            [
                {"audio_filepath": "clips/0.wav", "text": "GO"},
                {"audio_filepath": "clips/1.wav", "text": "GO"},
                {**part, "text": "STOP"},
            ],
        )
    listener = Listener()
    stats = evaluate(listener, f"own/test.{kind}", progress=False)
    assert listener.samples == [8000, 9600, 24000]
    assert stats["WER"].summarize("num_edits") == 1


MY_CORPORA = """
import pathlib

from hyperconformer.corpora.manifest import Utterance, prepare_split

number = 5


def prepare(data_folder, manifest_folder, speaker="me"):
    utterances = [
        Utterance(file.stem, speaker, str(file), "GO")
        for file in sorted(pathlib.Path(data_folder).glob("clips/*.wav"))
    ]
    path = prepare_split("mine", "train", utterances, data_folder, manifest_folder)
    return {"train": path}


def nothing(data_folder, manifest_folder):
    pass
"""


def test_a_function_of_ones_own_file(own, tmp_path, monkeypatch):
    (tmp_path / "my_corpora.py").write_text(MY_CORPORA)
    monkeypatch.syspath_prepend(tmp_path)
    mine = load_corpus("corpus: !name:my_corpora.prepare")
    rows = read_manifest(prepare(mine, own, tmp_path / "out", speaker="you")["train"])
    assert [(row["ID"], row["spk_id"]) for row in rows] == [(n, "you") for n in "012"]
    bound = load_corpus("corpus: !name:my_corpora.prepare {speaker: she}")
    rows = read_manifest(prepare(bound, own, tmp_path / "out")["train"])
    assert {row["spk_id"] for row in rows} == {"she"}
    with pytest.raises(
        ValueError, match="corpus 'prepare': speakers; known options: s"
    ):
        prepare(mine, own, tmp_path / "out", speakers="you")
    with pytest.raises(ValueError, match="'nothing' should return a dict .*got None"):
        prepare(load_corpus("corpus: !name:my_corpora.nothing"), own, tmp_path)
    with pytest.raises(ValueError, match="no such function: .*my_corpora.prepared"):
        load_corpus("corpus: !name:my_corpora.prepared")
    with pytest.raises(
        ValueError, match="unknown corpus 'my_corpora.*!name:my_corpora"
    ):
        prepare("my_corpora.prepare", own, tmp_path)
    with pytest.raises(ValueError, match="unknown corpus 5"):
        prepare(load_corpus("corpus: !name:my_corpora.number"), own, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("command", ["train.py", "shards"])
def test_the_file_lies_in_the_working_folder(own, tmp_path, command):
    (tmp_path / "my_corpora.py").write_text(MY_CORPORA)
    corpus = "!name:my_corpora.prepare"
    if command == "shards":
        arguments = ["-c", "import sys, hyperconformer.cli as c; sys.exit(c.main())"]
        arguments += ["shards", corpus, "own", "shards"]
    else:
        # It has no split `valid`, which is said after the function has been called.
        arguments = [ROOT / "train.py", ROOT / "hparams/hyperconformer.yaml"]
        arguments += [f"--corpus={corpus}", "--data_folder=own"]
        arguments += ["--corpus_options={speaker: you}", "--output_folder=results"]
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    if command == "shards":
        assert done.returncode == 0 and "train in 1 shards" in done.stdout, done.stderr
    else:
        assert "has no split 'valid'; it has: train" in done.stderr
        rows = read_manifest(tmp_path / "results/manifests/train.csv")
        assert {row["spk_id"] for row in rows} == {"you"}


@pytest.mark.integration
def test_the_readmes_stand_in_for_recordings(tmp_path):
    """What "Train on your own speech" pastes into a shell makes a corpus."""
    section = (ROOT / "README.md").read_text(encoding="utf-8")
    section = section[section.index("### Train on your own speech") :]
    program = re.search(r"<<'END'\n(.*?)\nEND\n", section, re.DOTALL)[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)
    manifests = prepare("csv", tmp_path / "my_speech", tmp_path / "out")
    counts = {split: len(read_manifest(path)) for split, path in manifests.items()}
    assert counts == {"train": 144, "valid": 48, "test": 48}
    assert not list((tmp_path / "out").glob("skipped_*"))


def test_a_file_with_the_name_of_a_segment_is_a_file(tmp_path, tone):
    path = tone(tmp_path / "a.wav#t=0,1", 0.25, format="WAV")
    assert len(read_audio(path)) == 4000
    soundfile.write(tmp_path / "a.wav", [0.1] * 32000, 16000)
    assert len(read_audio(tmp_path / "a.wav#t=0.5,1")) == 8000


def test_line_numbers_are_those_of_the_file(own):
    path = own / "train.csv"
    path.write_text('ID,wav,wrd\na,clips/0.wav,"GO\nON"\nb,clips/1.wav\n')
    faulty = [u.id for u in list_utterances(path) if u.fault]
    assert faulty == ["train.csv:4"]
