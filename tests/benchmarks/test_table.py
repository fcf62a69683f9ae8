"""Recognisers side by side, and documents that say what their CSV files say."""

import dataclasses
import shutil

import numpy as np
import pytest
import soundfile

from benchmarks import table
from benchmarks.__main__ import README, RESULTS
from benchmarks.__main__ import main as benchmarks
from benchmarks.report import readme_part, speedups, write_readme
from benchmarks.table import (
    Row,
    WavSet,
    main,
    markdown,
    read_rows,
    readme_table,
    write_rows,
)


def test_the_readme_says_what_the_results_say():
    assert readme_part(README, "speedups") == speedups(RESULTS)


def test_the_table_says_what_its_results_say():
    if not (RESULTS / "table.csv").exists():
        assert readme_part(README, table.NAME) == ""
        return
    rows = read_rows(RESULTS / "table.csv")
    text = f"# Recognisers\n\n{markdown(rows)}\n"
    assert (RESULTS / "table.md").read_text("utf-8") == text
    assert readme_part(README, table.NAME) == readme_table(rows)


def row(**changes):
    values = {
        field.name: {str: "x", int: 2}.get(field.type, 1.5)
        for field in dataclasses.fields(Row)
    }
    return Row(**{**values, "threads": 1, **changes})


def test_rows_survive_the_file_and_fill_the_table(tmp_path):
    rows = [
        row(set="AN4", recognizer="ours", form="ONNX", wer=2.85, rtf=0.004, commit="a"),
        row(set="AN4", recognizer="silent", first_ms=None, threads=2),
    ]
    write_rows(tmp_path / "table.csv", rows)
    assert read_rows(tmp_path / "table.csv") == rows
    readme = tmp_path / "README.md"
    readme.write_text("# Readme\n\nThe end.\n")
    table.write_table(tmp_path, readme)
    text = (tmp_path / "table.md").read_text()
    assert "### AN4: 2 recordings, 0.0 minutes, 2 threads" in text
    line = "| ours, ONNX | 2.85 % (1.50 to 1.50) | 0.0040 (1.5000) | 2 | 2 (2) |"
    assert line in text and "commit a, x." in text
    # The README has one thread alone.
    text = readme_part(readme, table.NAME)
    assert text == readme_table(rows)
    assert "\n| ours, ONNX | 2.85 % | 1.5000 | 2 | 1.5 |\n" in text
    assert "silent" not in text and "1 thread, x; " in text
    assert (tmp_path / "table.png").stat().st_size > 0
    # Another time it takes the place of the first.
    write_readme(readme, table.NAME, "other")
    assert readme_part(readme, table.NAME) == "other"
    assert readme.read_text().startswith("# Readme\n\nThe end.\n")
    assert "ours" not in readme.read_text()


@pytest.fixture
def speech(tmp_path):
    """A manifest of two seconds of noise, the second of which begins in silence."""
    noise = 0.1 * np.random.default_rng(0).normal(size=16000).astype("f4")
    late = np.concatenate([np.zeros(8000, "f4"), noise[:8000]])
    for name, samples in (("a", noise), ("b", late)):
        soundfile.write(tmp_path / f"{name}.flac", samples, 16000)
    manifest = tmp_path / "noise.csv"
    manifest.write_text("ID,wav,wrd\na,a.flac,cab dad\nb,b.flac,be\n")
    return manifest


def test_every_recogniser_gets_the_same_files(speech, tmp_path):
    sources = [(str(tmp_path / f"{name}.flac"), name) for name in "ab"]
    wavs = WavSet("noise", sources, tmp_path / "sets")
    assert wavs.texts == ["A", "B"] and wavs.begins_s == [0.0, 0.5]
    for (source, _), path in zip(sources, wavs.list.read_text().splitlines()):
        expected, _ = soundfile.read(source, dtype="int16")
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], expected)
    joined = wavs.joined(5.5, tmp_path / "sets")
    # A second each, and a second after each: the third would end after 5.5 s.
    assert joined.texts == ["A B A"] and joined.seconds == [6.0]
    assert joined.name == "noise, 0.0916667 minutes"


@pytest.mark.integration
def test_a_model_is_measured(speech, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "version", lambda package: "not installed")
    results = tmp_path / "results"
    results.mkdir()
    old = row(set="noise", recognizer=str(tiny_model), form="PyTorch, greedy")
    kept = dataclasses.replace(old, set="kept")
    write_rows(results / "table.csv", [old, kept])
    options = ["--manifest", speech, "--model", tiny_model, "--threads", 1]
    options += ["--rounds", 1, "--results", results, "--append"]
    assert benchmarks(["table", *map(str, options)]) == 0
    captured = capsys.readouterr()
    assert "is not streamed: normalization: utterance" in captured.err
    assert "onnxruntime is not installed" in captured.err
    found, other = read_rows(results / "table.csv")
    assert other == kept and found != old
    assert (found.set, found.utterances, found.audio_s) == ("noise", 2, 2.0)
    assert (found.form, found.threads, found.words) == ("PyTorch, greedy", 1, 3)
    assert found.wer == pytest.approx(100 * found.wrong / 3, rel=1e-3)
    assert found.start_s > 0.1 and found.resident_mb > 100
    # On one thread.
    assert 0 < found.cpu_rtf <= 1.1 * found.rtf
    assert 0.1 < found.start_cpu_s <= 1.1 * found.start_s
    # Words come when all was heard: at least a whole utterance after its first sound.
    assert found.last_ms > 0 and found.first_ms > 500
    assert found.disk_mb == pytest.approx(
        sum(f.stat().st_size for f in tiny_model.iterdir()) / 1e6, rel=1e-3
    )
    assert found.processor and found.commit
    assert "### noise: 2 recordings" in captured.out


def test_what_fails_is_left_out_and_named(speech, tiny_model, tmp_path, capsys):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "export.json").write_text('{"version": 99}')
    (broken / "model.onnx").touch()
    options = ["--manifest", speech, "--peer", f"onnx:{broken}", "--threads", 1]
    options += ["--only-peers", "--results", tmp_path / "r"]
    assert main(list(map(str, options))) == 1
    err = capsys.readouterr().err
    assert "LEFT OUT broken, onnx: ValueError" in err and "has version 99" in err
    assert "nothing was measured" in err


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "name speech: --an4, --librispeech or --manifest"),
        (["--manifest", "x.csv", "--rounds", "0"], "must be at least 1"),
    ],
)
def test_bad_options(capsys, options, message):
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "spec, error, message",
    [
        ("kaldi:x", ValueError, "unknown kind 'kaldi'; known: pytorch"),
        ("sherpa:none", FileNotFoundError, "no such model folder: none"),
    ],
)
def test_bad_peers(spec, error, message):
    with pytest.raises(error, match=message):
        table.peer(spec, "python")


@pytest.mark.slow
def test_every_form_of_a_model_is_measured(speech, tmp_path):
    pytest.importorskip("onnxruntime")
    options = ["--manifest", speech, "--model", "hyperconformer-an4-streaming"]
    options += ["--threads", 1, "--rounds", 1, "--results", tmp_path]
    assert main(list(map(str, options))) == 0
    rows = read_rows(tmp_path / "table.csv")
    forms = ["PyTorch, greedy", "ONNX, greedy", "ONNX, 8 bits, greedy"]
    streams = [f"{form}, streams of 640 ms" for form in forms]
    assert {found.form for found in rows} == {*forms, *streams}
