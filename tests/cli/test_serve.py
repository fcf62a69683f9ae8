"""``hyperconformer serve``: what is refused before anything listens."""

import pytest
from command_line import run

pytest.importorskip("fastapi")  # its extra installs it from Python 3.11 on


@pytest.mark.parametrize(
    "options,message",
    [
        (("--max-streams", 0), "streams must be positive and finite, got 0"),
        (("--max-idle-s", "inf"), "idle_s must be positive and finite, got inf"),
        (("--processes", 0), "--processes must be at least 1, got 0"),
        (("--port", 99999), "--port must be from 0 to 65535, got 99999"),
        (("--token-file", "/no/such/token"), "/no/such/token"),
        (("--model", "/no/such/model"), "no such model folder: /no/such/model"),
    ],
)
def test_mistakes_are_messages(capsys, options, message):
    code, out, err = run(capsys, "serve", *options)
    assert code == 1 and out == ""
    # Under pytest, libraries' warnings may come before it.
    last = err.splitlines()[-1]
    assert last.startswith("hyperconformer: ") and message in last


def test_an_empty_token_opens_nothing(capsys, tmp_path):
    (tmp_path / "token").write_text("\n")
    code, _, err = run(capsys, "serve", "--token-file", tmp_path / "token")
    assert code == 1 and "token is empty" in err
