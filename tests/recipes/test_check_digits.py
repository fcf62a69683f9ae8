"""The digits that a model gets wrong are counted by speaker."""

import pathlib
import runpy
from types import SimpleNamespace

import pytest

from hyperconformer.transcribe.offline import ASR

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEARD = {"0_ann_0": "OH", "1_ann_0": "WON", "9_bob_3": "NINE", "9_bob_4": "NINE ONE"}


@pytest.fixture
def main(monkeypatch):
    def load(model):
        assert model == "some-model"
        return SimpleNamespace(
            transcribe_file=lambda path: SimpleNamespace(text=HEARD[path.stem])
        )

    monkeypatch.setattr(ASR, "from_hparams", load)
    return runpy.run_path(str(ROOT / "recipes/check_digits.py"))["main"]


def test_wrong_digits_are_counted(main, tmp_path, capsys):
    for name in HEARD:
        (tmp_path / f"{name}.wav").touch()
    (tmp_path / "README.wav").touch()
    main([str(tmp_path), "--model", "some-model"])
    assert capsys.readouterr().out.splitlines() == [
        "ann: 1 of 2 wrong",
        "bob: 1 of 2 wrong",
        "all: 2 of 4 digits wrong (50.0 %)",
    ]
    main([str(tmp_path), "--model", "some-model", "--every", "2"])
    assert capsys.readouterr().out.endswith("all: 0 of 2 digits wrong (0.0 %)\n")


def test_a_folder_without_digits_is_named(main, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"no recordings DIGIT_SPEAKER_NUMBER.wav in {tmp_path}" in (
        capsys.readouterr().err
    )
