"""One recogniser in a process: its clock, its cuts, and folders of sherpa-onnx."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import recognizers
from benchmarks.recognizers import (
    Greedy,
    Step,
    main,
    pieces,
    sherpa_model,
    stretches,
    timed,
)

RATE_HZ = 16000


def test_the_clock_waits_for_the_audio_and_for_the_step_before(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recognizers.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(recognizers.time, "process_time", lambda: 2 * now[0])

    def steps():
        for seconds, heard_s, text in (
            (0.5, 1, ""),
            (2.5, 2, "GO"),
            (0.25, 3, "GO UP"),
        ):
            now[0] += seconds
            yield Step(heard_s, text)
            now[0] += 0.0

    found = timed(steps())
    # At 2 s the second chunk is there: its words come at 4.5 s, the last ones after.
    times = {"busy_s": 3.25, "cpu_s": 6.5, "first_s": 4.5, "last_s": 4.75}
    assert found == {"text": "GO UP", **times}


def test_a_recogniser_that_says_nothing_has_no_first_word():
    found = timed(iter([Step(1.0, "")]))
    assert found["first_s"] is None and found["last_s"] >= 1.0


def test_stretches_and_pieces_are_all_of_the_audio():
    samples = np.random.default_rng(0).normal(size=61 * RATE_HZ).astype("f4")
    parts = list(stretches(samples, RATE_HZ))
    assert len(parts) >= 4 and max(map(len, parts)) <= 20 * RATE_HZ
    assert np.array_equal(np.concatenate(parts), samples)
    heard, given = zip(*pieces(samples[:1000], RATE_HZ))
    assert np.array_equal(np.concatenate(given), samples[:1000])
    assert heard == (320 / RATE_HZ, 640 / RATE_HZ, 960 / RATE_HZ, 1000 / RATE_HZ)


def test_silence_after_words_ends_a_segment():
    greedy = Greedy(["<blk>", "\u2581GO"])

    def say(*tokens):
        return greedy.advance(np.eye(2)[list(tokens)], patience=3)

    assert not say(0, 0, 0, 0)  # Nothing was said.
    assert not say(1, 0, 0)
    assert say(0) and greedy.text == "GO"
    assert not say(0, 0, 0, 0)
    # A new segment begins: the same word is said again.
    assert say(1, 0, 0, 0) and greedy.text == "GO GO"


@pytest.mark.parametrize(
    "name, files, kind, method, arguments",
    [
        (
            "sherpa-onnx-streaming-zipformer-en-20M",
            [
                *("encoder-epoch-99-avg-1.onnx", "encoder-epoch-99-avg-1.int8.onnx"),
                *("decoder-epoch-99-avg-1.onnx", "joiner-epoch-99-avg-1.onnx"),
                "tokens.txt",
            ],
            "Online",
            "from_transducer",
            {
                "encoder": "encoder-epoch-99-avg-1.onnx",
                "decoder": "decoder-epoch-99-avg-1.onnx",
                "joiner": "joiner-epoch-99-avg-1.onnx",
                "tokens": "tokens.txt",
            },
        ),
        (
            "sherpa-onnx-whisper-tiny.en",
            ["tiny.en-encoder.onnx", "tiny.en-decoder.onnx", "tiny.en-tokens.txt"],
            "Offline",
            "from_whisper",
            {
                "encoder": "tiny.en-encoder.onnx",
                "decoder": "tiny.en-decoder.onnx",
                "tokens": "tiny.en-tokens.txt",
            },
        ),
        (
            "sherpa-onnx-moonshine-tiny-en-int8",
            [
                *("preprocess.onnx", "encode.int8.onnx", "tokens.txt"),
                *("uncached_decode.int8.onnx", "cached_decode.int8.onnx"),
            ],
            "Offline",
            "from_moonshine",
            {
                "preprocessor": "preprocess.onnx",
                "encoder": "encode.int8.onnx",
                "uncached_decoder": "uncached_decode.int8.onnx",
                "cached_decoder": "cached_decode.int8.onnx",
                "tokens": "tokens.txt",
            },
        ),
        (
            "sherpa-onnx-nemo-ctc-en-conformer-small",
            ["model.onnx", "model.int8.onnx", "tokens.txt"],
            "Offline",
            "from_nemo_ctc",
            {"model": "model.onnx", "tokens": "tokens.txt"},
        ),
        (
            "my-export",
            ["export.json", "model.onnx", "model.int8.onnx", "tokens.txt"],
            "Offline",
            "from_omnilingual_asr_ctc",
            {"model": "model.onnx", "tokens": "tokens.txt"},
        ),
        (
            "my-stream",
            [
                *("export.json", "model.onnx", "tokens.txt"),
                *("sherpa-onnx/model.onnx", "sherpa-onnx/tokens.txt"),
            ],
            "Online",
            "from_t_one_ctc",
            {"model": "sherpa-onnx/model.onnx", "tokens": "sherpa-onnx/tokens.txt"},
        ),
    ],
)
def test_folders_of_sherpa_onnx(tmp_path, name, files, kind, method, arguments):
    folder = tmp_path / name
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    found = {key: str(folder / file) for key, file in arguments.items()}
    assert sherpa_model(folder) == (kind, method, found)


def test_folders_that_sherpa_onnx_cannot_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        sherpa_model(tmp_path / "none")
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="of no known kind.*it holds thesis.txt"):
        sherpa_model(tmp_path)
    (tmp_path / "joiner.onnx").touch()
    (tmp_path / "decoder.onnx").touch()
    with pytest.raises(ValueError, match="lacks its encoder.onnx"):
        sherpa_model(tmp_path)


def test_memory_is_the_processs_own():
    held = np.ones(50_000_000)  # 400 MB, which the child does not have.
    code = "from benchmarks.recognizers import resident_mb; print(resident_mb())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 1 < float(found.stdout) < 100 < held.nbytes / 1e6


def test_an_unknown_kind(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["kaldi:x", str(tmp_path)])
    assert "unknown kind 'kaldi'; known: pytorch" in capsys.readouterr().err
