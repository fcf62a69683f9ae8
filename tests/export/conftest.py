"""Graphs of tiny models."""

import functools

import numpy as np
import pytest
import torch
from streaming_model import streaming_config

from hyperconformer.export.graph import make_optional, save, to_onnx
from hyperconformer.export.offline import OfflineGraph
from hyperconformer.export.sherpa import frame_and_tick
from hyperconformer.export.streaming import StreamingGraph
from hyperconformer.transcribe.streaming import StreamingModel

pytest.importorskip("onnxruntime")
CHUNK_MS = 160


@functools.cache
def streaming_model(mixer="hypermixing", left_context_ms=None, **options):
    torch.manual_seed(1)
    config = streaming_config(
        attention_type=mixer,
        mixer_options=options,
        num_encoder_layers=1,
        normalization="running_level",
    )
    modules = config["extractor"], config["recognizer"]
    return StreamingModel(*modules, CHUNK_MS, left_context_ms)


def once(log_probs, graph):
    """(B, T, V) frames in sherpa-onnx's contract without their repetitions."""
    frame, tick = frame_and_tick(graph)
    places = np.arange(log_probs.shape[1]) * tick // frame
    return log_probs[:, np.unique(places, return_index=True)[1]]


def session(model, path):
    """A graph in ONNX Runtime."""
    import onnxruntime

    save(model, path, {})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(str(path), options)


@pytest.fixture(scope="session")
def chunks(tmp_path_factory):
    """The graph of a stream: its module, its ONNX form and a session."""
    graph = StreamingGraph(streaming_model(normalize_by_frames=True))
    model = to_onnx(graph)
    return graph, model, session(model, tmp_path_factory.mktemp("onnx") / "m.onnx")


@pytest.fixture(scope="session")
def utterances(tmp_path_factory):
    """The graph of whole utterances, likewise."""
    torch.manual_seed(1)
    config = streaming_config(num_encoder_layers=1)
    graph = OfflineGraph(config["extractor"], config["recognizer"])
    model = to_onnx(graph)
    make_optional(model, "lengths", "samples")
    return graph, model, session(model, tmp_path_factory.mktemp("onnx") / "m.onnx")
