"""The command line."""

import io
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import soundfile
import torch

import hyperconformer
from hyperconformer.cli.main import main
from hyperconformer.evaluation import error_rates as evaluation
from hyperconformer.hub.folder import (
    DEFAULT_MODEL,
    DEFAULT_STREAMING_MODEL,
    find_model,
    list_shipped_models,
)
from hyperconformer.transcribe.offline import ASR

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two audio files."""
    folder = tmp_path_factory.mktemp("audio")
    paths = [folder / "one.wav", folder / "two.flac"]
    for path in paths:
        soundfile.write(path, 0.1 * torch.randn(16000).numpy(), 16000)
    return [str(path) for path in paths]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_the_documented_table_is_the_printed_one(capsys):
    assert main(["mixers"]) == 0
    assert capsys.readouterr().out in (ROOT / "docs/mixers.md").read_text()


def test_files_are_transcribed_in_every_format(capsys, files, tiny_model):
    code, text, _ = run(capsys, "transcribe", files[0], "--model", tiny_model)
    assert code == 0 and text.count("\n") == 1
    arguments = ("transcribe", *files, "--model", tiny_model)
    code, out, err = run(capsys, *arguments)
    assert code == 0 and out.splitlines()[0] == f"{files[0]}\t{text.strip()}"
    assert "2/2" in err  # the progress bar
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
        (("--hotwords", "/no/such/file"), "/no/such/file"),
        (("--lm", "/no/such/lm.arpa"), "no such n-gram model"),
    ],
)
def test_mistakes_are_messages(capsys, files, tiny_model, arguments, message):
    code, out, err = run(
        capsys, "transcribe", files[0], "--model", tiny_model, *arguments
    )
    assert code == 1 and out == ""
    assert err.startswith("hyperconformer: ") and message in err


def test_a_manifest_is_evaluated(capsys, files, tiny_model, tmp_path):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].strip()
    manifest = tmp_path / "test.csv"
    rows = [f"1,1.0,{files[0]},s,{spoken}", f"2,1.0,{files[1]},s,DAD"]
    manifest.write_text("\n".join(["ID,duration,wav,spk_id,wrd", *rows, ""]))
    alignments = tmp_path / "wer.txt"
    code, out, _ = run(
        capsys,
        *("evaluate", manifest, "--model", tiny_model, "--alignments", alignments),
    )
    assert code == 0
    words = len(spoken.split()) + 1
    assert out.splitlines()[0].startswith("WER ") and f"of {words})" in out
    assert "95 % interval 0.00 to" in out  # both drawn may be the first utterance
    assert out.splitlines()[1].startswith("CER ")
    assert "%WER" in alignments.read_text()
    code, _, err = run(capsys, "evaluate", tmp_path / "no.csv", "--model", tiny_model)
    assert code == 1 and "no such manifest" in err
    manifest.write_text("a,b\n1,2\n")
    code, _, err = run(capsys, "evaluate", manifest, "--model", tiny_model)
    assert code == 1 and "columns ID, wav and wrd" in err


def evaluate(capsys, model, path, *rows, header="ID,wav,wrd", encoding="utf-8"):
    path.write_text("\n".join([header, *rows, ""]), encoding=encoding)
    return run(capsys, "evaluate", path, "--model", model)


def test_one_bad_row_does_not_stop_an_evaluation(capsys, files, tiny_model, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "empty.wav", [], 16000)
    good = [f"good{i},{file},DAD BE" for i, file in enumerate(files)]
    arguments = capsys, tiny_model, tmp_path / "m.csv"
    _, expected, _ = evaluate(*arguments, *good)
    rows = [
        f"broken,{tmp_path}/bad.wav,DAD",
        good[0],
        f"gone,{tmp_path}/gone.wav,DAD",
        f"silent,{tmp_path}/empty.wav,DAD",
        f"short,{files[0]}",
        f"long,{files[0]},DAD, BE",
        f",{files[0]},DAD",
        "nowhere,,DAD",
        good[1],
    ]
    code, out, err = evaluate(*arguments, *rows)
    assert code == 1 and out == expected and out.startswith("WER ")
    for message in (
        "utterance broken: .*bad.wav cannot be read as audio",
        "utterance gone: no such audio file",
        "utterance silent: .*empty.wav: the audio holds no samples",
        "utterance m.csv:6: wrong number of columns",
        "utterance m.csv:7: wrong number of columns",
        "utterance m.csv:8: no ID",
        "utterance nowhere: no audio",
    ):
        assert re.search(f"hyperconformer: {message}", err), message
    assert (
        err.strip()
        .splitlines()[-1]
        .endswith(
            "7 of 9 utterances failed: "
            "broken, gone, silent, m.csv:6, m.csv:7, m.csv:8, nowhere"
        )
    )
    code, out, err = evaluate(*arguments, rows[0])
    assert code == 1 and out == "" and "none of its 1 utterances can be used" in err
    with pytest.raises(ValueError, match="m.csv: utterance broken: .*bad.wav"):
        evaluation.evaluate(ASR.from_hparams(tiny_model), tmp_path / "m.csv", False)


def test_references_in_any_form_are_compared_in_the_models(
    capsys, caplog, files, tiny_model, tmp_path
):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].strip()
    arguments = capsys, tiny_model, tmp_path / "m.csv"
    for text, encoding in ((spoken, "utf-8-sig"), (spoken.lower(), "utf-8")):
        code, out, _ = evaluate(*arguments, f"a,{files[0]},{text}", encoding=encoding)
        assert code == 0 and out.startswith("WER 0.00 %")
        wide = "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in text)
        code, out, _ = evaluate(*arguments, f"a,{files[0]},{wide}")
        assert code == 0 and out.startswith("WER 0.00 %")
    assert "m.csv: 1 of 1 entries are in another letter case" in caplog.text
    assert "cannot write" not in caplog.text
    assert evaluate(*arguments, f"a,{files[0]},ZOO")[0] == 0
    assert "references hold letters that the recogniser cannot write" in caplog.text


def test_a_rate_without_references_is_undefined(capsys, files, tiny_model, tmp_path):
    spoken = run(capsys, "transcribe", files[0], "--model", tiny_model)[1].split()
    code, out, _ = evaluate(capsys, tiny_model, tmp_path / "m.csv", f"a,{files[0]},")
    assert code == 0 and out.splitlines()[0] == (
        f"WER undefined: the references are empty ({len(spoken)} insertions)"
    )
    assert out.splitlines()[1].startswith("CER undefined")
    # Words where nothing is said are errors of the whole set.
    rows = [f"a,{files[0]},", f"b,{files[0]},{' '.join(spoken)}"]
    _, out, _ = evaluate(capsys, tiny_model, tmp_path / "m.csv", *rows)
    n = len(spoken)
    assert out.startswith(f"WER 100.00 % ({n} of {n}), 95 % interval 0.00 to ")


def test_loud_floats_are_warned_of_in_a_line(capsys, files, tiny_model, tmp_path):
    samples, rate_hz = soundfile.read(files[0])
    soundfile.write(tmp_path / "loud.wav", 32768 * samples, rate_hz, "FLOAT")
    path = tmp_path / "loud.wav"
    code, _, err = run(capsys, "transcribe", path, "--model", tiny_model)
    assert code == 0 and err.startswith(f"hyperconformer: {path}: floating samples")
    assert err.count("\n") == 1


def test_info_says_what_can_be_used(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    names = (
        "hyperconformer",
        "torch",
        "speechbrain",
        "devices",
        "c++ kernels",
        "linear layers by onednn",
        "kenlm",
    )
    for name in names:
        assert f"\n{name}: " in f"\n{out}"
    assert "WAV" in out and "hypermixing" in out and DEFAULT_MODEL in out


def test_the_shipped_model_is_found_by_name(monkeypatch, tmp_path, tiny_model):
    places = (tmp_path / "wheel", tmp_path / "clone")
    monkeypatch.setattr("hyperconformer.hub.folder.SHIPPED_FOLDERS", places)
    with pytest.raises(FileNotFoundError, match="not installed.*name a model folder"):
        find_model()
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / DEFAULT_MODEL).symlink_to(tiny_model)
    assert list_shipped_models() == [DEFAULT_MODEL]
    assert find_model() == find_model(DEFAULT_MODEL) == places[1] / DEFAULT_MODEL


def test_what_is_shipped_transcribes_and_streams(capsys, files):
    """The models in the repository, found without being named."""
    assert {DEFAULT_MODEL, DEFAULT_STREAMING_MODEL} <= set(list_shipped_models())
    for arguments in ((), ("--stream",)):
        code, out, err = run(capsys, "transcribe", files[0], *arguments)
        assert code == 0 and out.endswith("\n"), err


@pytest.fixture
def streaming_model(tiny_model, tmp_path):
    """The tiny model, causal, and features that do not wait for the utterance's end."""
    folder = shutil.copytree(tiny_model, tmp_path / "streaming")
    settings = folder / "hyperparams.yaml"
    text = settings.read_text()
    for old, new in (
        ("normalization: utterance", "normalization: global\n  top_db: null"),
        ("    residuals:", "    causal: True\n    residuals:"),
    ):
        assert old in text
        text = text.replace(old, new)
    settings.write_text(text)
    return folder


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


def test_a_pipe_may_be_empty_but_not_end_within_a_sample(
    capsys, streaming_model, monkeypatch
):
    arguments = ("transcribe", "-", "--stream", "--model", streaming_model)
    for pcm, code, message in ((b"", 0, ""), (b"abc", 1, "within a 16-bit sample")):
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


def test_ctrl_c_ends_a_recording(files, streaming_model):
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
        ((streaming_model, "--nbest", 2), "--stream goes without --nbest"),
        ((streaming_model, "--chunk-ms", 50), "multiple of"),
    ):
        code, _, err = run(capsys, *command, *arguments)
        assert code == 1 and message in err


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--chunk-ms", 320, "--endpoint-s", 1), "takes --chunk-ms, --endpoint-s"),
        (("--left-context-ms", 640), "only --stream takes --left-context-ms"),
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
    "command", ["info", "mixers", "--help", "transcribe {0} {0} --model {1}"]
)
def test_closed_pipes_and_full_disks(files, tiny_model, command):
    command = command.format(files[0], tiny_model)
    shell = f"set -o pipefail; {sys.executable} -m hyperconformer.cli {command}"
    for rest in ("| true", "> /dev/full", ">&-"):
        done = subprocess.run(
            ["bash", "-c", f"{shell} {rest}"], cwd=ROOT, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr
        if rest == "> /dev/full" and command != "--help":  # argparse is content
            assert done.returncode == 1
            assert "No space left on device" in done.stderr.splitlines()[-1]


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"hyperconformer {hyperconformer.__version__}\n"
