"""``hyperconformer mixers``."""

import pathlib

from hyperconformer.cli.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_documented_table_is_the_printed_one(capsys):
    assert main(["mixers"]) == 0
    assert capsys.readouterr().out in (ROOT / "docs/mixers.md").read_text()
