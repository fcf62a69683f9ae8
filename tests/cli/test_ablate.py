"""``hyperconformer ablate``; tests/ablation tells what it does."""

import pytest
from command_line import run

from hyperconformer.cli.main import main
from hyperconformer.core.shipped import list_ablations


def test_ablations_are_listed_with_what_they_are(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["ablate", "--list"])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(list_ablations())
    described = [line.split(maxsplit=1) for line in lines]
    assert ["mixers", "Eight mixers in one encoder."] in described


def test_a_shipped_one_is_planned_by_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "ablate", "tied", "--dry-run", "--device=cpu")
    assert code == 0 and "2 runs to do, of 400 updates each" in out
    assert "python -m hyperconformer.cli train" in out and "--device=cpu" in out
    assert not list(tmp_path.iterdir())
