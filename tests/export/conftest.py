"""Graphs of tiny models."""

import functools

import numpy as np
import pytest
import soundfile
import torch
from streaming_model import TINY, streaming_config

from hyperconformer.export.folder import export_model
from hyperconformer.export.graph import make_optional, save, to_onnx
from hyperconformer.export.offline import OfflineGraph
from hyperconformer.export.sherpa import frame_and_tick
from hyperconformer.export.streaming import StreamingGraph
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.transcribe.streaming import StreamingModel

pytest.importorskip("onnxruntime")
CHUNK_MS = 160


@functools.cache
def streaming_model(
    mixer="hypermixing", left_context_ms=None, right_context_ms=0, **options
):
    torch.manual_seed(1)
    config = streaming_config(
        attention_type=mixer,
        mixer_options=options,
        num_encoder_layers=1,
        normalization="running_level",
    )
    modules = config["extractor"], config["recognizer"]
    return StreamingModel(*modules, CHUNK_MS, left_context_ms, right_context_ms)


def with_phones(recognizer):
    """A recogniser of the same encoder with a phone head too."""
    parts = recognizer.frontend, recognizer.transformer
    sizes = TINY["d_model"], TINY["vocab_size"]
    return Recognizer(*parts, *sizes, phones=["AH", "B"]).eval()


def once(log_probs, graph):
    """(B, T, V) frames in sherpa-onnx's contract without their repetitions."""
    frame, tick = frame_and_tick(graph)
    places = np.arange(log_probs.shape[1]) * tick // frame
    return log_probs[:, np.unique(places, return_index=True)[1]]


def session(model, path):
    """A graph in ONNX Runtime."""
    save(model, path, {})
    return open_session(path)


def open_session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options)


@pytest.fixture(scope="session")
def chunks(make_once):
    """The graph of a stream: its module, its ONNX form and a session."""
    import onnx

    graph = StreamingGraph(streaming_model(normalize_by_frames=True))
    path = make_once("chunks.onnx", lambda path: save(to_onnx(graph), path, {}))
    return graph, onnx.load(path), open_session(path)


@pytest.fixture(scope="session")
def utterances(make_once):
    """The graph of whole utterances, likewise, of a recogniser with a phone head."""
    import onnx

    torch.manual_seed(1)
    config = streaming_config(num_encoder_layers=1)
    recognizer = with_phones(config["recognizer"])
    graph = OfflineGraph(config["extractor"], recognizer)

    def make(path):
        model = to_onnx(graph)
        make_optional(model, "lengths", "samples")
        save(model, path, {})

    path = make_once("utterances.onnx", make)
    return graph, onnx.load(path), open_session(path)


@pytest.fixture(scope="session")
def manifest(tmp_path_factory):
    """Two utterances of noise."""
    place = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    rows = ["ID,wav,wrd"]
    for name, samples in (("a", 16000), ("b", 12345)):
        noise = 0.1 * rng.normal(size=samples)
        soundfile.write(place / f"{name}.wav", noise, 16000)
        rows.append(f"{name},{name}.wav,CAB DAD")
    (place / "test.csv").write_text("\n".join(rows) + "\n")
    return place / "test.csv"


@pytest.fixture(scope="session")
def exported(tiny_model, manifest, make_once):
    """The tiny model as graphs of whole utterances."""
    options = {"int8": True, "manifest": manifest, "force": True}
    place = make_once(
        "exports", lambda path: export_model(tiny_model, path / "tiny", **options)
    )
    return place / "tiny"
