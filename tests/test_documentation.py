"""The notebooks run, and the site builds without a warning."""

import json
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import hyperconformer

DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def execute(name, monkeypatch):
    """Runs a notebook where it lies; returns what it printed, cell by cell."""
    root = str(DOCS.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    # In the interpreter of the tests, whatever kernels the user has installed.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    notebook = nbformat.read(DOCS / "notebooks" / name, as_version=4)
    resources = {"metadata": {"path": str(DOCS / "notebooks")}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    printed = [
        "".join(output.get("text", "") for output in cell) for cell in outputs if cell
    ]
    pictures = [
        output for cell in outputs for output in cell if "image/png" in str(output)
    ]
    return printed, pictures


@pytest.mark.integration
def test_transcribe_and_look_inside(monkeypatch):
    printed, pictures = execute("transcribe.ipynb", monkeypatch)
    spoken = "ONE FIVE TWO TWO SEVEN"
    assert printed[0].strip() == printed[-1].strip() == spoken
    assert [line.split()[-2] for line in printed[1].splitlines()] == spoken.split()
    assert len(pictures) == 2


@pytest.mark.slow
def test_first_ablation(monkeypatch):
    printed, pictures = execute("first_ablation.ipynb", monkeypatch)
    losses = re.findall(r"(\w+) +[\d,]+ parameters, valid loss ([\d.]+)", printed[-1])
    assert [mixer for mixer, _ in losses] == ["RoPEMHA", "hypermixing"]
    # The training loss of the first epoch is 3.2.
    assert all(0 < float(loss) < 3.0 for _, loss in losses)
    assert len(pictures) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_the_reference_has_every_public_name():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: hyperconformer\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(names) == hyperconformer.__all__


def test_the_version_is_the_same_everywhere():
    version = re.escape(hyperconformer.__version__)
    changes = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (DOCS.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## {version} - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE)
    assert re.search(rf"^version: {version}$", citation, re.MULTILINE)


@pytest.mark.integration
def test_the_site_builds_without_warnings(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    assert 'id="hyperconformer.HyperMixing.forward"' in reference
    # SpeechBrain's sections are read as such, Sphinx's roles are gone.
    assert "Arguments" not in reference and ":meth:" not in reference
