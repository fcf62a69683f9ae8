"""The folder of the page, without a browser."""

import json
import re

import pytest

from hyperconformer.cli.main import main
from hyperconformer.page import site

CONTRACT = {"format": site.FORMAT, "version": site.FORMAT_VERSION, "kind": "streaming"}
SOURCES = sorted(site.STATIC.iterdir())


@pytest.fixture
def export(tmp_path):
    """Looks like an exported model."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "export.json").write_text(json.dumps(CONTRACT))
    (folder / "tokens.txt").write_text("<blk> 0\n")
    (folder / "model.onnx").write_bytes(b"float")
    return folder


@pytest.fixture
def runtime(monkeypatch):
    """Stands for what npm installs."""

    def install(place, target):
        target.mkdir()
        for name in site.RUNTIME_FILES:
            (target / name).write_text(name)

    monkeypatch.setattr(site, "_install_runtime", install)


def test_a_site_holds_page_model_and_runtime(export, runtime, tmp_path, capsys):
    target = tmp_path / "a" / "site"
    assert main(["page", str(export), str(target)]) == 0
    assert "http://localhost:8000" in capsys.readouterr().out
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == {
        *(path.name for path in SOURCES),
        *("model/export.json", "model/tokens.txt", "model/model.onnx"),
        *(f"onnxruntime/{name}" for name in site.RUNTIME_FILES),
    }
    # A smaller graph is preferred; an earlier site is replaced.
    (export / "model.int8.onnx").write_bytes(b"int8")
    assert site.write_site(export, target).name == "model.int8.onnx"
    assert (target / "model/model.onnx").read_bytes() == b"int8"
    assert sorted(path.name for path in target.parent.iterdir()) == ["site"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 7}, "version 7; expected hyperconformer-onnx, version 1"),
        ({"format": "other"}, "has the format other"),
        ({"kind": "offline"}, "needs a model that streams, got the kind offline"),
        ({"kind": None}, "got the kind None"),
    ],
)
def test_another_contract_is_refused(export, tmp_path, change, message):
    (export / "export.json").write_text(json.dumps({**CONTRACT, **change}))
    with pytest.raises(ValueError, match=message):
        site.write_site(export, tmp_path / "site")


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_a_broken_contract_is_refused(export, tmp_path, text):
    (export / "export.json").write_text(text)
    with pytest.raises(ValueError, match="no description of an exported model"):
        site.write_site(export, tmp_path / "site")


@pytest.mark.parametrize("name", ["export.json", "tokens.txt", "model.onnx"])
def test_a_missing_file_is_named(export, tmp_path, name):
    (export / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {name}; `hyperconformer exp"):
        site.write_site(export, tmp_path / "site")


def test_other_folders_are_left_alone(export, runtime, tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    (target / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="is no such page"):
        site.write_site(export, target)
    assert (target / "index.html").read_text() == "mine"


def test_without_npm_nothing_is_left(export, tmp_path, monkeypatch):
    monkeypatch.setattr(site.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="there is no npm: install Node.js"):
        site.write_site(export, tmp_path / "site")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]


def test_what_npm_says_is_shown(export, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(site.shutil, "which", lambda name: str(npm))
    with pytest.raises(ValueError, match="could not install onnxruntime-web: no netw"):
        site.write_site(export, tmp_path / "site")


def test_the_page_names_no_other_place():
    for path in SOURCES:
        urls = re.findall(r"""(?:https?:|["'(=])//[\w.]\S*""", path.read_text("utf-8"))
        # The page says where it can be opened.
        urls = [url for url in urls if not url.startswith("http://localhost")]
        assert not urls, f"{path.name}: {urls}"


def test_the_policy_lets_nothing_out():
    text = (site.STATIC / "index.html").read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy"\s+content="([^"]+)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    allowed = {"'self'", "'none'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert {word for rule in rules.values() for word in rule.split()} <= allowed
    # No script or style stands in the page: the policy would not let it run.
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src)| on\w+=", text)


def test_page_and_command_read_the_same_version():
    text = (site.STATIC / "graph.js").read_text("utf-8")
    assert f'const FORMAT = "{site.FORMAT}";' in text
    assert f"const VERSION = {site.FORMAT_VERSION};" in text


def test_the_lock_file_names_no_host():
    lock = json.loads((site.RUNTIME / "package-lock.json").read_text("utf-8"))
    packages = [entry for name, entry in lock["packages"].items() if name]
    assert packages and all("integrity" in entry for entry in packages)
    assert not any("resolved" in entry for entry in packages)
