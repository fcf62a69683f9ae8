"""Imports go one way, importing the package is light, and links lead somewhere."""

import ast
import pathlib
import re
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "hyperconformer"

# Lower floors know nothing of higher ones.
FLOORS = [
    "core",
    ("audio", "config", "ops"),
    "nn",
    "mixers",
    "encoders",
    "model",
    "lm",
    "hub",
    "search",
    "transcribe",
    "serve",
    "corpora",
    "evaluation",
    "export",
    "verification",
    "page",
    "training",
    "ablation",
    "cli",
]
# Of the model, only these need SpeechBrain; of the rest, what its users call.
WITH_SPEECHBRAIN = {
    *("model", "lm", "search", "hub", "training", "evaluation"),
    "mixers/attention.py",
}


def imports(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def part(path):
    """The part of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name):
    for number, names in enumerate(FLOORS):
        if name in (names if isinstance(names, tuple) else (names,)):
            return number
    raise AssertionError(f"{name} stands on no floor: add it to FLOORS")


def test_imports_go_one_way():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        if path == PACKAGE / "__init__.py":
            continue
        for name in imports(path):
            pieces = (name or "").split(".")
            if pieces[0] == "hyperconformer" and len(pieces) > 1:
                if floor(pieces[1]) > floor(part(path)):
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong, wrong


def test_only_an_operator_knows_its_kernels():
    """Another file would have to change when a folder's kernels are taken out."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            names = {*node.module.split("."), *(alias.name for alias in node.names)}
            if names & {"cpp_path", "triton_path", "triton_kernels"}:
                operator = path.relative_to(PACKAGE).parent.as_posix().replace("/", ".")
                assert node.module.startswith(f"hyperconformer.{operator}"), path


def test_speechbrain_is_imported_where_it_belongs():
    for path in PACKAGE.rglob("*.py"):
        names = {(name or "").split(".")[0] for name in imports(path)}
        place = path.relative_to(PACKAGE).as_posix()
        allowed = {part(path), place} & WITH_SPEECHBRAIN
        assert "speechbrain" not in names or allowed, path


def test_importing_the_package_loads_neither_speechbrain_nor_triton():
    code = (
        "import sys, hyperconformer\n"
        "heavy = {'torch', 'speechbrain', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_public_can_be_imported():
    import hyperconformer

    for name in hyperconformer.__all__:
        assert getattr(hyperconformer, name) is not None


def test_links_of_the_documents_lead_somewhere():
    """Meant for a clean clone, which lacks what version control ignores."""
    root = PACKAGE.parent
    ours = [root / name for name in ("docs", "recipes", "pretrained", "benchmarks")]
    documents = [*root.glob("*.md"), *(file for d in ours for file in d.rglob("*.md"))]
    assert len(documents) > 10
    broken = [
        f"{document.relative_to(root)}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8"))
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)
