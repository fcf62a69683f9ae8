"""A folder that any web server serves: the page, a model and ONNX Runtime Web."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import Union

from hyperconformer.export.runtime import (
    CONTRACT_FILE,
    FORMAT,
    FORMAT_VERSION,
    GRAPH_FILE,
    INT8_FILE,
    TOKENS_FILE,
)

HERE = pathlib.Path(__file__).parent
# The page itself, and the lock file of what it needs from npm.
STATIC, RUNTIME = HERE / "static", HERE / "runtime"
# Of onnxruntime-web: the runtime for processors, and its WebAssembly.
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
# Of an exported model, the smaller graph first.
GRAPH_FILES = (INT8_FILE, GRAPH_FILE)
MODEL_FILES = (CONTRACT_FILE, TOKENS_FILE)
# Of a site: where it keeps the model, and its marks.
MODEL, INDEX = "model", "index.html"


def write_site(
    export: Union[str, pathlib.Path], site: Union[str, pathlib.Path]
) -> pathlib.Path:
    """Write the page for an exported model.

    Arguments
    ---------
    export : str or pathlib.Path
        What ``hyperconformer export --streaming`` wrote. Of its graphs the one with
        weights of 8 bits is taken, where there is one.
    site : str or pathlib.Path
        Folder to write; it may be absent, empty or an earlier site, which is
        replaced.

    Returns
    -------
    pathlib.Path
        The graph that was taken.

    Raises
    ------
    FileNotFoundError
        If the export lacks a file, or npm is not installed.
    ValueError
        If the model does not stream or is of another version, if the folder holds
        something else, or if npm fails.
    """
    export, site = pathlib.Path(export), pathlib.Path(site)
    graph = _check_export(export)
    if site.exists() and not _is_ours(site):
        raise ValueError(f"{site} exists and is no such page: name another folder")
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".page-", dir=site.parent) as place:
        new = pathlib.Path(place, "new")
        shutil.copytree(STATIC, new)
        (new / MODEL).mkdir()
        for name in MODEL_FILES:
            shutil.copy(export / name, new / MODEL / name)
        shutil.copy(graph, new / MODEL / "model.onnx")
        _install_runtime(pathlib.Path(place), new / "onnxruntime")
        if site.exists():
            shutil.rmtree(site)
        os.replace(new, site)
    return graph


def size_bytes(site: pathlib.Path) -> int:
    """What a browser loads, all files together."""
    return sum(file.stat().st_size for file in site.rglob("*") if file.is_file())


def _check_export(export):
    missing = [name for name in MODEL_FILES if not (export / name).is_file()]
    graphs = [export / name for name in GRAPH_FILES if (export / name).is_file()]
    if missing or not graphs:
        raise FileNotFoundError(
            f"{export} is no exported model: it lacks "
            f"{', '.join(missing) or GRAPH_FILES[1]}; `hyperconformer export MODEL "
            f"{export} --streaming --int8` writes one"
        )
    file = export / CONTRACT_FILE
    try:
        contract = json.loads(file.read_text("utf-8"))
        found = contract["format"], contract["version"]
        kind = contract["kind"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} is no description of an exported model: {error!r}; export the "
            "model again"
        ) from error
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{file} has the format {found[0]}, version {found[1]}; expected {FORMAT}, "
            f"version {FORMAT_VERSION}: export the model again"
        )
    if kind != "streaming":
        raise ValueError(
            f"{file}: the page needs a model that streams, got the kind {kind}; export "
            "it with --streaming"
        )
    return graphs[0]


def _is_ours(site):
    return site.is_dir() and (
        not any(site.iterdir())
        or ((site / INDEX).is_file() and (site / MODEL / CONTRACT_FILE).is_file())
    )


def _install_runtime(place, target):
    """Let npm install what the lock file names, and take the files of the page."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            "the page needs onnxruntime-web, which npm installs, and there is no npm: "
            "install Node.js"
        )
    shutil.copytree(RUNTIME, place / "runtime")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(
        command, cwd=place / "runtime", capture_output=True, text=True
    )
    if done.returncode != 0:
        raise ValueError(
            f"npm could not install onnxruntime-web: {done.stderr.strip()[-500:]}"
        )
    target.mkdir()
    for name in RUNTIME_FILES:
        source = place / "runtime/node_modules/onnxruntime-web/dist" / name
        shutil.copy(source, target / name)
