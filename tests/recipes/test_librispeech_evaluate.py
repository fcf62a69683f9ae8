"""The report of a model folder on a split of LibriSpeech's layout."""

import csv
import pathlib
import subprocess
import sys

import pytest
import soundfile

from hyperconformer import GreedySearcher, StreamingASR
from hyperconformer.audio import read_audio

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes/LibriSpeech/evaluate.py"
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"  # ONE FIVE TWO TWO SEVEN


def make_split(folder, transcripts):
    samples, rate = soundfile.read(SPEECH)
    for speaker, text in transcripts.items():
        chapter = folder / speaker / "1"
        chapter.mkdir(parents=True)
        soundfile.write(chapter / f"{speaker}-1-0000.flac", samples, rate)
        (chapter / f"{speaker}-1.trans.txt").write_text(f"{speaker}-1-0000 {text}\n")
    return folder


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.integration
def test_rates_speakers_lengths_confusions_and_counts(tmp_path):
    spoken = {"7": "ONE FIVE TWO TWO SEVEN", "8": "ONE FIVE TWO NINE SEVEN SIX"}
    split = make_split(tmp_path / "dev-clean", spoken)
    counts = tmp_path / "counts.csv"
    done = run("hyperconformer-an4", split, "--csv", counts)
    assert done.returncode == 0, done.stderr
    # Of eleven words, NINE was another one and SIX was not spoken.
    assert "WER 18.18 %" in done.stdout
    assert "best: 7 0.0, 8 33.3" in done.stdout
    assert "1-5                 1     0.0" in done.stdout
    assert "NINE TWO 1" in done.stdout
    rows = list(csv.DictReader(counts.open(encoding="utf-8")))
    assert [row["word errors"] for row in rows] == ["0", "2"]


@pytest.mark.integration
def test_a_split_is_decoded_as_streams(tmp_path):
    model = "hyperconformer-an4-streaming"
    asr = StreamingASR.from_hparams(model, chunk_ms=640, search=GreedySearcher())
    *_, last = asr.partials([read_audio(SPEECH, 16000)])
    split = make_split(tmp_path / "dev-clean", {"7": last.text})
    done = run(model, split, "--chunk-ms", 640, "--greedy")
    assert done.returncode == 0, done.stderr
    assert "WER 0.00 %" in done.stdout
    done = run("hyperconformer-an4", split, "--chunk-ms", 640)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_a_missing_split_is_named(tmp_path):
    (tmp_path / "dev-clean").mkdir()
    done = run("hyperconformer-an4", tmp_path / "test-clean")
    assert done.returncode == 1
    assert "test-clean" in done.stderr and "Traceback" not in done.stderr
