"""``hyperconformer train``; what it trains, other tests tell."""

import pytest
from command_line import run

from hyperconformer.cli.main import main
from hyperconformer.core.shipped import list_recipes


def test_recipes_are_listed_with_what_they_are(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--list"])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_recipes())
    (line,) = [line for line in lines if line.startswith("hyperconformer ")]
    assert line.split(maxsplit=1)[1].startswith("The default run: the embedded corpus")


def test_arguments_reach_the_training_as_they_are(monkeypatch):
    got = []
    monkeypatch.setattr("hyperconformer.training.command.train", got.extend)
    words = ["--device", "cpu", "lm", "--precision", "bf16", "--lr=-1"]
    words += ["--corpus_options={a: 1, b: 2}", "--li=3", "--test_only", "--lr", "-2"]
    assert main(["train", *words]) == 0
    assert got == words


def test_other_commands_take_no_unknown_arguments(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["info", "--lr=1"])
    assert exit.value.code == 2
    assert "unrecognized arguments: --lr=1" in capsys.readouterr().err


def test_a_recipe_is_needed(capsys):
    code, _, err = run(capsys, "train")
    assert code == 1 and "--list prints recipes" in err
