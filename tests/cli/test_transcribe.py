"""``hyperconformer transcribe``."""

import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import soundfile
from command_line import run

from hyperconformer.audio import read_audio
from hyperconformer.core.masks import ChunkRule
from hyperconformer.hub.folder import (
    DEFAULT_MODEL,
    DEFAULT_STREAMING_MODEL,
    list_shipped_models,
)
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.transcribe.streaming import StreamingASR

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_files_are_transcribed_in_every_format(capsys, files, tiny_model):
    code, text, _ = run(capsys, "transcribe", files[0], "--model", tiny_model)
    assert code == 0 and text.count("\n") == 1
    arguments = ("transcribe", *files, "--model", tiny_model)
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and out.splitlines()[0] == f"{files[0]}\t{text.strip()}"
    code, out, _ = run(capsys, *arguments, "--format", "json", "--nbest", 3)
    first, second = map(json.loads, out.splitlines())
    assert first["file"] == files[0] and len(second["nbest"]) == 3
    code, out, _ = run(capsys, *arguments, "--format", "ctm")
    assert {line.split()[0] for line in out.splitlines()} == {"one", "two"}
    for name in ("srt", "vtt"):
        code, out, _ = run(capsys, *arguments, "--format", name)
        assert code == 0 and " --> " in out
        one, two = (pathlib.Path(file).with_suffix(f".{name}") for file in files)
        assert out.splitlines()[0] == f"{files[0]} --> {one}"
        alone = run(capsys, *arguments[:2], *arguments[3:], "--format", name)[1]
        assert one.read_text() == alone != two.read_text()


def test_one_bad_file_does_not_stop_the_rest(capsys, files, tiny_model, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    code, out, err = run(
        capsys, "transcribe", files[0], bad, files[1], "--model", tiny_model
    )
    assert code == 1 and out.count("\n") == 2 and files[1] in out
    assert "file/s" not in err  # no progress bar in what is no terminal
    assert "cannot be read as audio" in err
    assert err.strip().splitlines()[-1].endswith(f"1 of 3 files failed: {bad}")


def test_hot_words_come_through(capsys, files, tiny_model, tmp_path):
    hotwords = tmp_path / "hotwords.txt"
    hotwords.write_text("dad\n\nCAB BE\n")
    arguments = ("transcribe", files[0], "--model", tiny_model, "--hotwords", hotwords)
    assert run(capsys, *arguments)[0] == 0
    hotwords.write_text("dad\nCAB BE\n", encoding="utf-8-sig")
    assert run(capsys, *arguments)[0] == 0
    hotwords.write_text("DAD\nZOO\n")
    code, _, err = run(capsys, *arguments)
    assert code == 1 and "the hot word 'ZOO'" in err


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--model", "/no/such/folder"), "no such model folder"),
        (("--nbest", "0"), "nbest must be from 1"),
        (("--hotwords", "/no/such/file"), ": /no/such/file: No such file or directory"),
        (("--lm", "/no/such/lm.arpa"), "no such n-gram model"),
    ],
)
def test_mistakes_are_messages(capsys, files, tiny_model, arguments, message):
    code, out, err = run(
        capsys, "transcribe", files[0], "--model", tiny_model, *arguments
    )
    assert code == 1 and out == ""
    assert err.startswith("hyperconformer: ") and message in err


def test_loud_floats_are_warned_of_in_a_line(capsys, files, tiny_model, tmp_path):
    samples, rate_hz = soundfile.read(files[0])
    soundfile.write(tmp_path / "loud.wav", 32768 * samples, rate_hz, "FLOAT")
    path = tmp_path / "loud.wav"
    code, _, err = run(capsys, "transcribe", path, "--model", tiny_model)
    assert code == 0 and err.startswith(f"hyperconformer: {path}: floating samples")
    assert err.count("\n") == 1


@pytest.mark.integration
def test_what_is_shipped_transcribes_and_streams(capsys, files):
    """The models in the repository, found without being named."""
    assert {DEFAULT_MODEL, DEFAULT_STREAMING_MODEL} <= set(list_shipped_models())
    for arguments in ((), ("--stream",)):
        code, out, err = run(capsys, "transcribe", files[0], *arguments)
        assert code == 0 and out.endswith("\n"), err


def test_streams_print_the_same_from_a_file_and_from_standard_input(
    capsys, files, streaming_model, monkeypatch
):
    arguments = ("--stream", "--chunk-ms", 320, "--model", streaming_model)
    code, from_file, _ = run(capsys, "transcribe", files[0], *arguments)
    assert code == 0 and from_file.endswith("\n")
    pcm, _ = soundfile.read(files[0], dtype="int16")
    stdin = types.SimpleNamespace(buffer=io.BytesIO(pcm.tobytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    code, from_pipe, _ = run(capsys, "transcribe", "-", *arguments)
    assert code == 0 and from_pipe == from_file


def test_a_stream_takes_hot_words_and_language_models(
    capsys, files, streaming_model, tmp_path
):
    """As a whole file does; an object for each segment, with the n best readings."""
    hotwords = tmp_path / "hot.txt"
    hotwords.write_text("cab\n")
    arpa = train_arpa(["CAB DAD", "DAD BE"], tmp_path / "lm.arpa", 2)
    command = ("transcribe", files[0], "--stream", "--model", streaming_model)
    options = {"arpa": arpa, "lm_weight": 0.7, "hotwords": ["cab"]}
    arguments = ("--hotwords", hotwords, "--lm", arpa, "--lm-weight", 0.7, "--beam", 9)
    code, text, err = run(capsys, *command, *arguments)
    search = CTCSearcher(9, nbest=3, **options)
    asr = StreamingASR.from_hparams(streaming_model, search=search)
    (*_, last) = asr.partials([read_audio(files[0], 16000)])
    assert code == 0 and last.text and text.split() == last.text.split(), err
    as_json = (*arguments, "--format", "json", "--nbest", 3)
    code, out, err = run(capsys, *command, *as_json)
    (segment,) = map(json.loads, out.splitlines())
    assert code == 0 and segment["file"] == str(files[0]), err
    assert segment["text"] == last.text
    # The scores tell whether every option has arrived.
    found = [(each["text"], each["score"]) for each in segment["nbest"]]
    assert found == [(each.text, round(each.score, 4)) for each in last.nbest]
    assert len(found) > 1
    confidences = [word["confidence"] for word in segment["words"]]
    assert confidences == [round(word.confidence, 4) for word in last.words]


def test_a_pipe_may_be_empty_but_not_end_within_a_sample(
    capsys, streaming_model, monkeypatch
):
    arguments = ("transcribe", "-", "--stream", "--model", streaming_model)
    nothing = "standard input ended without samples"
    for pcm, code, message in (
        (b"", 0, nothing),
        (b"abc", 1, "within a 16-bit sample"),
    ):
        stdin = types.SimpleNamespace(buffer=io.BytesIO(pcm))
        monkeypatch.setattr("sys.stdin", stdin)
        got, _, err = run(capsys, *arguments)
        assert got == code and message in err


def test_half_a_sample_at_the_end_costs_no_word(
    capsys, files, streaming_model, monkeypatch
):
    pcm = soundfile.read(files[0], dtype="int16")[0].tobytes()
    arguments = ("transcribe", "-", "--stream", "--model", streaming_model)
    outs = []
    for data in (pcm[:-2], pcm[:-1]):
        stdin = types.SimpleNamespace(buffer=io.BytesIO(data))
        monkeypatch.setattr("sys.stdin", stdin)
        outs.append(run(capsys, *arguments)[1])
    assert outs[0] == outs[1] and outs[0].strip()


def test_a_stream_goes_on_after_a_bad_file(capsys, files, streaming_model, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(pathlib.Path(files[0]).read_bytes()[:1000])
    arguments = ("--stream", "--model", streaming_model)
    alone = [run(capsys, "transcribe", file, *arguments)[1] for file in files]
    code, out, err = run(capsys, "transcribe", files[0], bad, files[1], *arguments)
    lines = [
        f"{file}\t{line}\n"
        for file, text in zip(files, alone)
        for line in text.splitlines()
    ]
    assert code == 1 and out == "".join(lines)
    assert "bad.wav: truncated audio" in err and f"1 of 3 files failed: {bad}" in err


def test_a_stream_too_short_for_a_word_is_named(capsys, streaming_model, tmp_path):
    short = tmp_path / "short.wav"
    soundfile.write(short, [0.1] * 10, 16000)
    arguments = ("transcribe", short, "--stream", "--model", streaming_model)
    code, out, err = run(capsys, *arguments)
    assert code == 1 and out == ""
    assert "short.wav: the audio lasts 0.0006 s; at least 0.1 s is needed" in err


@pytest.mark.integration
def test_ctrl_c_ends_a_recording(files, streaming_model, interruptible):
    # More than a pipe holds: writing ends when the program reads.
    pcm = 6 * soundfile.read(files[0], dtype="int16")[0].tobytes()
    command = [sys.executable, "-m", "hyperconformer.cli", "transcribe", "--stream"]
    # Chunks longer than what is sent: all of the words wait for the end.
    command += ["-", "--model", streaming_model, "--chunk-ms", "8000"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdin.write(pcm)
        process.stdin.flush()
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
    assert process.returncode == 130 and out.strip() and not err, err


def test_what_streams_cannot_do_is_named(capsys, files, streaming_model, tiny_model):
    command = ("transcribe", "--stream", files[0], "--model")
    for arguments, message in (
        ((tiny_model,), "normalization: global"),
        ((streaming_model, "--format", "srt"), "--stream goes without --format srt"),
        ((streaming_model, "--nbest", 0), "--nbest must be from 1 upwards, got 0"),
        ((streaming_model, "--lm", "no.arpa"), "no such n-gram model: no.arpa"),
        ((streaming_model, "--lm", __file__), "is no n-gram model: give an ARPA file"),
        ((streaming_model, "--lm", files[0]), "is no n-gram model: give an ARPA file"),
        ((streaming_model, "--lm-weight", 1), "needs a language model"),
        ((streaming_model, "--chunk-ms", 50), "multiple of"),
    ):
        code, _, err = run(capsys, *command, *arguments)
        assert code == 1 and message in err


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--chunk-ms", 320, "--endpoint-s", 1), "takes --chunk-ms, --endpoint-s"),
        (("--left-context-ms", 640), "only --stream takes --left-context-ms"),
        (("--right-context-ms", 80), "only --stream takes --right-context-ms"),
        (("-",), "only --stream takes - as FILE"),
        (("--beam", 0), "--beam must be at least 1, got 0"),
        (("--beam", -3), "--beam must be at least 1, got -3"),
        (("--stream", "--beam", 0), "--beam must be at least 1, got 0"),
        (("--nbest", 5, "--beam", 3, "--format", "json"), "to --beam = 3, got 5"),
        (("--lm-weight", "nan"), "--lm-weight must be a number from 0, got nan"),
        (("--lm-weight", -1), "--lm-weight must be a number from 0, got -1"),
        (("--lm-weight", 1, "--lm", "none"), "got --lm none"),
        (("--overwrite",), "--overwrite needs --output DIR"),
        (("--stream", "--output", "out"), "--stream goes without --output"),
        (("--stream", "--endpoint-s", "nan"), "--endpoint-s must be above 0"),
        (("--stream", "--endpoint-s", "inf"), "--endpoint-s must be above 0"),
        (("--stream", "--chunk-ms", "nan"), "a multiple of 40 ms, got nan"),
        (("--stream", "--chunk-ms", 4e12), "at most 600000 ms"),
        (("--stream", "--left-context-ms", "nan"), "left context must be >= 0 ms"),
        (("--stream", "--right-context-ms", "nan"), "right context must last a mult"),
        (("--stream", "--right-context-ms", "50"), "a multiple of 40 ms, got 50 ms"),
        (("--stream", "-", "-"), "can be read only once"),
        (("--device", "nonsense"), "the device 'nonsense' cannot be used"),
        (("--device", "meta"), "the device 'meta' cannot be used"),
        (("--device", "cuda:99"), "the device 'cuda:99' cannot be used"),
        (("--stream", "--device", "cuda:99"), "the device 'cuda:99' cannot be used"),
    ],
)
def test_an_option_without_effect_or_out_of_range_is_named(
    capsys, files, streaming_model, arguments, message
):
    command = ("transcribe", "--model", streaming_model, *arguments, files[0])
    code, out, err = run(capsys, *command)
    assert (code, out) == (1, "") and message in err


def test_readings_that_a_format_does_not_show_are_mentioned(capsys, files, tiny_model):
    command = ("transcribe", files[0], "--model", tiny_model, "--nbest", 3)
    code, out, err = run(capsys, *command)
    assert code == 0 and out and "only --format json shows more" in err
    code, out, err = run(capsys, *command, "--format", "json")
    assert code == 0 and len(json.loads(out)["nbest"]) == 3 and err == ""


def test_hot_words_that_are_none(capsys, files, tiny_model, tmp_path):
    command = ("transcribe", files[0], "--model", tiny_model, "--hotwords")
    for content, message in ((b"\n", "holds no words"), (b"\xff", "UTF-8")):
        (tmp_path / "words").write_bytes(content)
        code, _, err = run(capsys, *command, tmp_path / "words")
        assert code == 1 and message in err and "words" in err
    code, _, err = run(capsys, *command, tmp_path)
    assert code == 1 and str(tmp_path) in err


@pytest.mark.parametrize("name", ["txt", "json", "srt", "vtt", "ctm"])
def test_transcripts_go_into_a_folder(capsys, files, tiny_model, tmp_path, name):
    command = ("--model", tiny_model, "--format", name)
    folder = tmp_path / "new" / "folder"
    code, out, _ = run(
        capsys, "transcribe", *files, "--output", folder, "--format", name, *command
    )
    assert code == 0 and out.splitlines()[-1].endswith("2 WEBVTT files written") == (
        name == "vtt"
    )
    for file in files:
        written = folder / f"{pathlib.Path(file).stem}.{name}"
        assert f"{file} --> {written}\n" in out
        assert written.read_text() == run(capsys, "transcribe", file, *command)[1]


def test_no_file_is_replaced_unasked(capsys, files, tiny_model, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "two.srt").write_text("corrected by hand")
    command = ("transcribe", *files, "--model", tiny_model, "--format", "srt")
    command += ("--output", folder)
    code, out, err = run(capsys, *command)
    assert (code, out) == (1, "") and f"already there: {folder / 'two.srt'}" in err
    assert [file.name for file in folder.iterdir()] == ["two.srt"]
    assert run(capsys, *command, "--overwrite")[0] == 0
    assert "-->" in (folder / "two.srt").read_text()
    # One recording that fails leaves the other's file.
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no audio")
    command = ("transcribe", bad, files[0], *command[3:], "--overwrite")
    code, out, _ = run(capsys, *command)
    assert code == 1 and not (folder / "bad.srt").exists()
    assert out.endswith("1 SubRip file written\n")


def test_two_transcripts_never_share_a_file(capsys, files, tiny_model, tmp_path):
    other = pathlib.Path(shutil.copy(files[0], tmp_path / "one.flac"))
    command = ("transcribe", files[0], other, "--model", tiny_model)
    code, _, err = run(capsys, *command, "--output", tmp_path / "out")
    assert code == 1 and f"{files[0]} and {other} would both be written" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, *command, "--output", other)
    assert code == 1 and "--output must name a folder" in err
    audio = shutil.copy(files[0], tmp_path / "audio.srt")
    command = ("transcribe", audio, files[1], *command[3:], "--format", "srt")
    code, _, err = run(capsys, *command, "--overwrite")
    assert code == 1 and "would replace the audio" in err
    assert soundfile.info(audio).frames == 16000


@pytest.mark.parametrize(
    "options, lengths",
    [
        ((), (560, 80)),
        (("--chunk-ms", 640), (640, 0)),
        (("--chunk-ms", 240, "--right-context-ms", 80), (240, 80)),
        (("--right-context-ms", 0), (560, 0)),
    ],
)
def test_chunk_and_right_context_arrive(
    capsys, monkeypatch, streaming_model, options, lengths
):
    rules = []

    def stop(model, *given):
        rules.append((model.chunk, model.latency_ms))
        raise ValueError("enough")

    monkeypatch.setattr(StreamingASR, "__init__", lambda asr, *given: stop(*given))
    code, _, err = run(
        capsys, "transcribe", "--stream", "-", "--model", streaming_model, *options
    )
    assert code == 1 and "enough" in err
    chunk, right = lengths
    assert rules == [(ChunkRule(chunk // 40, None, right // 40), chunk + right + 2.5)]
