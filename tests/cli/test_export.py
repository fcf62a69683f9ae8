"""``hyperconformer export``."""

import pytest

from hyperconformer.cli.main import main
from hyperconformer.export import folder


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the command asks for."""
    found = []

    def export_model(*arguments, **options):
        found.append((arguments, options))
        (tmp_path / "README.md").write_text("# exported\n")
        return tmp_path

    monkeypatch.setattr(folder, "export_model", export_model)
    return found


def test_the_options_arrive(calls, capsys):
    assert main(["export", "m", "out"]) == 0
    assert capsys.readouterr().out == "# exported\n"
    streaming = ["--streaming", "--int8", "--check", "test.csv"]
    streaming += ["--right-context-ms", "80"]
    assert main(["export", "m", "out", *streaming]) == 0
    arguments, options = calls[0]
    assert arguments == ("m", "out") and options["chunk_ms"] is None
    _, options = calls[1]
    assert options["chunk_ms"] == 560 and options["int8"]
    assert options["right_context_ms"] == 80 and options["left_context_ms"] is None
    assert options["manifest"] == "test.csv" and not options["force"]


@pytest.mark.parametrize(
    "option", ["--chunk-ms", "--left-context-ms", "--right-context-ms"]
)
def test_options_of_streams_need_a_stream(calls, capsys, option):
    assert main(["export", "m", "out", option, "640"]) == 1
    assert f"{option} needs --streaming" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--streaming", "--chunk-ms", "650"], "a multiple of 40 ms, got 650 ms"),
        (["--streaming", "--chunk-ms", "0"], "a multiple of 40 ms, got 0 ms"),
    ],
)
def test_bad_chunks(capsys, tmp_path, arguments, message):
    model = "hyperconformer-an4-streaming"
    assert main(["export", model, str(tmp_path / "out"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_stream_say_why(capsys, tmp_path):
    arguments = ["hyperconformer-an4", str(tmp_path / "out"), "--streaming"]
    assert main(["export", *arguments]) == 1
    assert "needs the whole utterance" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_model(capsys, tmp_path):
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "no such model folder" in capsys.readouterr().err
