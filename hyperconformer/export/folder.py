"""A folder of exported graphs, whole or not there."""

import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

from hyperconformer.core.tokens import BLANK_INDEX, list_pieces
from hyperconformer.evaluation.error_rates import list_utterances
from hyperconformer.export import check, sherpa
from hyperconformer.export.graph import make_optional, save, to_onnx
from hyperconformer.export.offline import PHONE_OUTPUT, OfflineGraph
from hyperconformer.export.quantize import quantize
from hyperconformer.export.readme import readme
from hyperconformer.export.runtime import (
    CONTRACT_FILE,
    FORMAT,
    FORMAT_VERSION,
    GRAPH_FILE,
    INT8_FILE,
    PHONES_FILE,
    TOKENS_FILE,
)
from hyperconformer.export.streaming import StreamingGraph
from hyperconformer.hub.folder import load_model
from hyperconformer.model.features import frame_ms
from hyperconformer.transcribe.streaming import StreamingModel

README_FILE = "README.md"
# Where a streaming export keeps the graphs in sherpa-onnx's contract.
SHERPA_FOLDER = "sherpa-onnx"


def export_model(
    source: str | pathlib.Path | None,
    folder: str | pathlib.Path,
    *,
    chunk_ms: float | None = None,
    left_context_ms: float | None = None,
    right_context_ms: float = 0,
    int8: bool = False,
    manifest: str | pathlib.Path | None = None,
    force: bool = False,
    trusted: bool = False,
) -> pathlib.Path:
    """Write a model as ONNX graphs.

    Arguments
    ---------
    source : str or pathlib.Path or None
        As :func:`hyperconformer.hub.folder.load_model`.
    folder : str or pathlib.Path
        Made; it may be absent, empty or an earlier export, which is replaced.
    chunk_ms : float, optional
        A streaming graph of such chunks; None = a graph of whole utterances.
    left_context_ms : float, optional
        As :class:`hyperconformer.transcribe.streaming.StreamingModel`.
    right_context_ms : float
        Likewise.
    int8 : bool
        Whether to write the graph with weights of 8 bits too.
    manifest : str or pathlib.Path, optional
        Speech to compare the graphs with PyTorch on.
    force : bool
        Whether to write what the comparison refuses.
    trusted : bool
        As :func:`hyperconformer.hub.folder.load_model`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no such model or manifest.
    ValueError
        If the model cannot be exported, the graphs differ from it, or the folder
        holds something else.
    MissingExtraError
        If the packages of ``[export]`` are missing.
    """
    if chunk_ms is None and right_context_ms:
        raise ValueError(
            f"only chunks have a right context, got {right_context_ms:g} ms without"
        )
    folder = pathlib.Path(folder)
    if folder.exists() and not _is_ours(folder):
        raise ValueError(
            f"{folder} exists and is no exported model: name another folder"
        )
    if manifest is not None:
        list_utterances(manifest)  # one that cannot be read is named before the work
    config, tokenizer = load_model(source, ("extractor", "recognizer"), trusted=trusted)
    modules = config["extractor"], config["recognizer"]
    model = None
    if chunk_ms is not None:
        model = StreamingModel(*modules, chunk_ms, left_context_ms, right_context_ms)
    graph, contract = _offline(*modules) if model is None else _streaming(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as place:
        new = pathlib.Path(place, "new")
        new.mkdir()
        pieces = list_pieces(tokenizer)
        _write_graphs(new, graph, contract, int8, sherpa.tokens_text(pieces))
        if PHONE_OUTPUT in graph.outputs:
            text = sherpa.tokens_text(["", *modules[1].phones])
            (new / PHONES_FILE).write_text(text, encoding="utf-8")
        report = None
        if manifest is not None:
            files = [GRAPH_FILE, INT8_FILE] if int8 else [GRAPH_FILE]
            report = check.compare(new, files, modules, model, tokenizer, manifest)
            if report.faults and not force:
                raise ValueError(
                    "; ".join(report.faults) + ". --force writes it anyway"
                )
        name = str(source or "the model that comes with the package")
        text = readme(name, contract, report, int8)
        (new / README_FILE).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(new, folder)
    return folder


def _is_ours(folder):
    return folder.is_dir() and (
        not any(folder.iterdir()) or (folder / CONTRACT_FILE).is_file()
    )


def _offline(extractor, recognizer):
    graph = OfflineGraph(extractor, recognizer)
    return graph, {
        **_contract("offline", extractor, recognizer),
        "inputs": graph.inputs,
        "outputs": graph.outputs,
    }


def _streaming(model):
    graph = StreamingGraph(model)
    return graph, {
        **_contract("streaming", model.extractor, model.recognizer),
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "chunk_ms": model.chunk.chunk_frames * model.frame_ms,
        "right_context_ms": model.chunk.right_frames * model.frame_ms,
        "latency_ms": model.latency_ms,
        "frames": model.chunk.chunk_frames,
        "window": graph.window,
        "shift": graph.shift,
        "before": graph.before,
        "state_dim": graph.layout.size,
        "kept": graph.kept,
    }


def _contract(kind, extractor, recognizer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "kind": kind,
        "sample_rate": extractor.features.compute_STFT.sample_rate,
        "frame_ms": frame_ms(extractor, recognizer.frontend),
        "vocab_size": recognizer.ctc_head.out_features,
        "blank": BLANK_INDEX,
        "normalization": extractor.normalization,
    }


def _write_graphs(folder, graph, contract, int8, tokens):
    models = {GRAPH_FILE: to_onnx(graph)}
    if int8:
        models[INT8_FILE] = quantize(models[GRAPH_FILE])
    metadata = {k: v for k, v in contract.items() if k not in ("inputs", "outputs")}
    for name, model in models.items():
        if contract["kind"] == "streaming":
            (folder / SHERPA_FOLDER).mkdir(exist_ok=True)
            rate = contract["sample_rate"]
            kept = {
                **metadata,
                "frame_length_ms": 1000 * sherpa.PIECE // rate,
                "state_dim": sherpa.state_dim(graph),
            }
            save(sherpa.t_one(model, graph), folder / SHERPA_FOLDER / name, kept)
        else:
            make_optional(model, "lengths", "samples")
        save(model, folder / name, metadata)
    places = [folder]
    if contract["kind"] == "streaming":
        places.append(folder / SHERPA_FOLDER)
    for place in places:
        (place / TOKENS_FILE).write_text(tokens, encoding="utf-8")
    text = json.dumps(contract, indent=2) + "\n"
    (folder / CONTRACT_FILE).write_text(text, encoding="utf-8")
