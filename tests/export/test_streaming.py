"""Chunk by chunk, a graph says what the streaming model says."""

import numpy as np
import pytest
import torch
from export.conftest import session, streaming_model
from streaming_model import streaming_config

from hyperconformer.export.graph import to_onnx
from hyperconformer.export.streaming import StateLayout, StreamingGraph
from hyperconformer.mixers.registry import list_mixers
from hyperconformer.transcribe.streaming import StreamingModel

pytestmark = pytest.mark.integration

# Of each mixer that streams: its options, and whether it needs a bounded left context.
STREAMING = {
    "gated_deltanet": ({"causal": True}, False),
    "hyperglu": ({"block_size": 5}, False),
    "hypermlp": ({"block_size": 5}, False),
    "hypermixing": ({"learned_decay": True}, False),
    "linear_attention": ({"causal": True}, False),
    "polynomial_mixing": ({}, False),
    "RelPosMHAXL": ({}, True),
    "RoPEMHA": ({}, True),
    "regularMHA": ({}, True),
    "summary_mixing": ({}, False),
    "windowed_summary_mixing": ({}, False),
}
LENGTHS = [20, 2559, 2560, 2600, 8000, 10240 + 255, 16001]


def speech(samples):
    return 0.1 * torch.randn(samples) * (1 + torch.arange(samples) / 4000).sin()


def run(call, graph, utterances):
    """Log-probabilities of streams that are one batch, and end when they end."""
    padded = [torch.cat([torch.zeros(graph.before), x]) for x in utterances]
    state = torch.zeros(len(padded), graph.layout.size)
    found = [[] for _ in padded]
    for begin in range(0, max(map(len, padded)), graph.shift):
        samples = torch.zeros(len(padded), graph.window)
        length = torch.zeros(len(padded), dtype=torch.int64)
        for row, stream in enumerate(padded):
            heard = stream[begin : begin + graph.window]
            if len(heard) >= graph.before:
                samples[row, : len(heard)], length[row] = heard, len(heard)
        log_probs, frames, state = call(samples, length, state)
        for row, count in zip(range(len(padded)), frames.tolist()):
            found[row].append(log_probs[row, :count])
    return [torch.cat(frames) for frames in found]


def assert_like_the_model(call, graph, model, lengths):
    utterances = [speech(samples) for samples in lengths]
    expected, _ = model.feed(model.init_state(len(lengths)), utterances, last=True)
    for one, other in zip(run(call, graph, utterances), expected):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-4


def in_runtime(graph, path):
    """A graph in ONNX Runtime, called with tensors."""
    return as_call(session(to_onnx(graph), path))


def as_call(runtime):
    def call(samples, length, state):
        inputs = {"samples": samples, "length": length, "state": state}
        found = runtime.run(None, {k: v.numpy() for k, v in inputs.items()})
        return [torch.from_numpy(np.ascontiguousarray(x)) for x in found]

    return call


@pytest.mark.parametrize("right_ms", [0, 80])
@pytest.mark.parametrize("mixer", STREAMING)
@torch.no_grad()
def test_the_module_says_what_the_model_says(mixer, right_ms):
    options, bounded = STREAMING[mixer]
    model = streaming_model(mixer, 320 if bounded else None, right_ms, **options)
    assert_like_the_model(StreamingGraph(model), StreamingGraph(model), model, LENGTHS)


def test_onnx_runtime_says_what_the_model_says(chunks):
    graph, _, runtime = chunks
    model = streaming_model(normalize_by_frames=True)
    assert_like_the_model(as_call(runtime), graph, model, LENGTHS)
    assert_like_the_model(as_call(runtime), graph, model, [8000])


@pytest.mark.slow
@pytest.mark.parametrize("mixer", STREAMING)
def test_every_mixer_that_streams_is_exported(mixer, tmp_path):
    options, bounded = STREAMING[mixer]
    model = streaming_model(mixer, 320 if bounded else None, **options)
    graph = StreamingGraph(model)
    call = in_runtime(graph, tmp_path / "m.onnx")
    assert_like_the_model(call, graph, model, LENGTHS)


@pytest.fixture(scope="module")
def hybrid():
    """Attention in the last layer: states of several kinds in one vector."""
    torch.manual_seed(1)
    config = streaming_config(
        attention_type=["hypermixing", "RoPEMHA"],
        mixer_options=[{"learned_decay": True}, None],
        normalization="running_level",
    )
    return StreamingModel(config["extractor"], config["recognizer"], 160, 320)


@torch.no_grad()
def test_the_module_of_different_mixers_says_what_the_model_says(hybrid):
    graph = StreamingGraph(hybrid)
    assert_like_the_model(graph, graph, hybrid, LENGTHS)


@pytest.mark.slow
def test_a_stack_of_different_mixers_is_exported(hybrid, tmp_path):
    graph = StreamingGraph(hybrid)
    call = in_runtime(graph, tmp_path / "m.onnx")
    assert_like_the_model(call, graph, hybrid, LENGTHS)


@pytest.mark.parametrize("mixer", sorted({*list_mixers()} - {*STREAMING}))
def test_the_others_say_why_they_cannot(mixer):
    with pytest.raises(ValueError, match="cannot stream"):
        streaming_model(mixer)


def test_states_go_into_a_vector_and_back():
    state = {
        "seen": torch.tensor([3, 4]),
        "sums": torch.randn(2, 3, 4),
        "on": torch.tensor([True, False]),
    }
    layout = StateLayout({name: torch.zeros_like(x) for name, x in state.items()})
    back = layout.unpack(layout.pack(state))
    assert layout.size == 14 and list(back) == list(state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype


def test_zeros_stand_for_what_a_state_begins_with():
    begin = torch.tensor([[-torch.inf, 5.0, 0.0]])
    layout = StateLayout({"level": begin})
    assert torch.equal(layout.unpack(torch.zeros(1, 3))["level"], begin)
    assert not layout.pack({"level": begin}).any()
    later = torch.tensor([[-2.0, 0.0, 5.0]])
    back = layout.unpack(layout.pack({"level": later}))["level"]
    assert torch.allclose(back, later, atol=1e-8)


def test_a_new_segment_keeps_the_level_and_nothing_else():
    model = streaming_model("hypermixing")
    graph = StreamingGraph(model)
    _, state = model.feed(model.init_state(1), [speech(9000)])
    wanted = model.forget(state).tensors
    packed = graph.layout.pack(
        {place.name: state.tensors[place.name] for place in graph.layout.places}
    )
    packed[:, graph.kept :] = 0
    found = graph.layout.unpack(packed)
    assert 0 < graph.kept < graph.layout.size
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
    # There was a level to keep.
    level = [name for name in found if name.startswith("extractor.")]
    fresh = model.init_state(1).tensors
    assert any(not torch.equal(found[name], fresh[name]) for name in level)
