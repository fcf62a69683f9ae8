"""``hyperconformer verify``."""

import json

import pytest
from command_line import run

from hyperconformer.verification import verify
from hyperconformer.verification.verify import FAIL, PASS, Row, Verdict


@pytest.fixture
def verdicts(monkeypatch):
    """What is found, and with which options it was asked for."""
    calls = []

    def found(model, manifest, **options):
        calls.append((model, manifest, options))
        rows = [Row("files", "a", "a", PASS)]
        if model == "bad":
            rows.append(Row("words", "1", "9", FAIL, "they may differ by 1"))
        return Verdict(model, rows, {"words": 10}, {"torch": "2"})

    monkeypatch.setattr(verify, "verify", found)
    return calls


def test_exit_status_table_and_json(capsys, verdicts, tmp_path):
    assert run(capsys, "verify", "good")[0] == 0
    file = tmp_path / "verdict.json"
    options = ("--json", file, "--quick", "--speech", "two.csv")
    code, out, _ = run(capsys, "verify", "bad", *options)
    assert code == 1
    assert "| words | 1 | 9 | fail: they may differ by 1 |" in out
    verdict = json.loads(file.read_text())
    assert verdict["failed"] and verdict["rows"][1]["found"] == "9"
    assert verdicts[0] == ("good", None, {"quick": False, "trusted": False})
    assert verdicts[1] == ("bad", "two.csv", {"quick": True, "trusted": False})


def test_recording_prints_its_part_of_the_card(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verify, "record", lambda *_, **options: "## Verified")
    assert run(capsys, "verify", "m", "--record") == (0, "## Verified\n", "")
    for option in (["--quick"], ["--json", tmp_path / "x.json"]):
        code, _, err = run(capsys, "verify", "m", "--record", *option)
        assert code == 1 and f"it goes without {option[0]}" in err


def test_a_folder_without_a_model(capsys, tmp_path):
    code, out, err = run(capsys, "verify", tmp_path / "none")
    assert code == 1 and out == "" and "no such model folder" in err


def test_a_model_of_which_nothing_is_claimed(capsys, tiny_model):
    code, out, err = run(capsys, "verify", tiny_model)
    assert code == 1 and out == "" and "nothing is claimed of" in err
