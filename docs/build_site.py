"""What ``mkdocs build`` needs beside its own parts: see mkdocs.yml.

The site has the repository's files where its documents link to them: README.md as the
start page, the recipes' results, tables, logs and YAML files.
"""

import os
import pathlib
import re

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
START_PAGE = ROOT / "README.md"
DOCUMENTS = [START_PAGE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files, config):
    """Adds the documents above docs/, and every file that a document links to."""
    docs = pathlib.Path(config.docs_dir)
    found, left = set(), [*DOCUMENTS, *docs.rglob("*.md")]
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".md":
            left += _linked_files(path)
        if files.get_file_from_path(_place(path)) is None:
            files.append(File.generated(config, _place(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns the repository's links into the site's."""
    source = pathlib.Path(page.file.abs_src_path)
    folder = pathlib.PurePosixPath(page.file.src_uri).parent

    def rewrite(link):
        target = _linked_file(source, link[1])
        if target is None:
            return link[0]  # mkdocs warns of what it does not find
        place = os.path.relpath(_place(target), folder)
        return f"]({place}{link[2] or ''})"

    return LINK.sub(rewrite, markdown)


def _linked_files(path):
    """The repository's files that a document links to."""
    links = LINK.findall(path.read_text(encoding="utf-8"))
    targets = [_linked_file(path, link) for link, _ in links]
    return [target for target in targets if target is not None]


def _linked_file(path, link):
    """The file of a link; of a folder, the nearest README.md at or above it."""
    target = (path.parent / link).resolve()
    if "://" in link or not target.exists():
        return None
    if target.is_dir():
        folders = [target, *target.parents]
        return next(d / "README.md" for d in folders if (d / "README.md").is_file())
    return target


def _place(path):
    """Where a file of the repository is in the site."""
    if path == START_PAGE:
        return "index.md"
    place = path.relative_to(ROOT)
    if place.parts[0] == "docs":
        place = place.relative_to("docs")
    return place.as_posix()


class SpeechBrainSections(griffe.Extension):
    """Reads docstrings in SpeechBrain's dialect of NumPy's sections."""

    NAMES = {"Arguments": "Parameters", "Example": "Examples"}

    def on_instance(self, *, obj, **_):
        """Renames the sections; Sphinx's roles become code."""
        if obj.is_alias or obj.docstring is None:
            return
        text = obj.docstring.value
        for ours, theirs in self.NAMES.items():
            heading = rf"^{ours}\n-+$"
            new = f"{theirs}\n{'-' * len(theirs)}"
            text = re.sub(heading, new, text, flags=re.MULTILINE)
        text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
        obj.docstring.value = text
