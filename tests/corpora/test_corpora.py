"""The registry: names to preparation functions."""

import pathlib
import subprocess
import sys

import pytest

from hyperconformer import corpora


def test_lists_the_built_in_corpora():
    assert {"an4", "librispeech", "spoken"} <= set(corpora.list_corpora())


def test_unknown_corpus_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'timit'.*an4.*librispeech.*spoken"):
        corpora.prepare("timit", tmp_path, tmp_path)


def test_unknown_option_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'an4': held_out; known.*valid_speakers"):
        corpora.prepare("an4", tmp_path, tmp_path, held_out=3)


def test_a_corpus_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "_CORPORA", dict(corpora._CORPORA))

    @corpora.register_corpus("mine")
    def prepare_mine(data_folder, manifest_folder, half=False):
        return {"train": (data_folder, manifest_folder, half)}

    assert "mine" in corpora.list_corpora()
    assert corpora.prepare("mine", "a", "b", half=True) == {"train": ("a", "b", True)}
    with pytest.raises(ValueError, match="half"):
        corpora.prepare("mine", "a", "b", whole=True)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'an4' is registered already"):
        corpora.register_corpus("an4")


def test_importing_loads_neither_torch_nor_the_synthesiser():
    program = (
        "import sys, types\n"
        # The corpora alone, whatever the package around them imports.
        "package = types.ModuleType('hyperconformer')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "sys.modules['hyperconformer'] = package\n"
        "from hyperconformer.corpora import an4, librispeech\n"
        "from hyperconformer.corpora.synthetic import spoken\n"
        "print({'torch', 'espeakng_loader'} & set(sys.modules))\n"
    )
    package = str(pathlib.Path(corpora.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-c", program, package], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
