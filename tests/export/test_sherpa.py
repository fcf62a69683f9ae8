"""sherpa-onnx's contract around a graph of chunks."""

import math
import types

import numpy as np
import pytest
import torch
from export.conftest import CHUNK_MS, once, session, streaming_model, with_phones
from export.test_streaming import speech

from hyperconformer.core.masks import ChunkRule
from hyperconformer.export.graph import to_onnx
from hyperconformer.export.sherpa import (
    IN_STEP,
    PIECE,
    SCALES,
    frame_and_tick,
    state_dim,
    t_one,
    tokens_text,
)
from hyperconformer.export.streaming import StreamingGraph
from hyperconformer.transcribe.streaming import StreamingModel

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def wrapped(chunks, tmp_path_factory):
    graph, model, _ = chunks
    path = tmp_path_factory.mktemp("onnx") / "t.onnx"
    return graph, session(t_one(model, graph), path)


@pytest.fixture(scope="session")
def looking_ahead(tmp_path_factory):
    """The same of chunks with a right context, and of a model with a phone head."""
    plain = streaming_model(normalize_by_frames=True)
    modules = plain.extractor, with_phones(plain.recognizer)
    model = StreamingModel(*modules, CHUNK_MS, right_context_ms=80)
    graph, place = StreamingGraph(model), tmp_path_factory.mktemp("onnx")
    chunks = to_onnx(graph)
    wrapped = session(t_one(chunks, graph), place / "t.onnx")
    return graph, wrapped, model, session(chunks, place / "chunks.onnx")


def as_sherpa(samples):
    """(N,) integers as sherpa-onnx makes them of float samples, in whole calls."""
    scaled = np.trunc(np.asarray(samples, "f4") * np.float32(32767)).astype("i4")
    return np.pad(scaled, (0, -len(scaled) % PIECE)).reshape(-1, PIECE, 1)


def run(runtime, graph, streams):
    """(B, T, V) of streams that are one batch, each frame once, and the last state."""
    state = np.zeros((len(streams), state_dim(graph)), "f2")
    found = []
    for pieces in zip(*map(as_sherpa, streams)):
        log_probs, state = runtime.run(None, {"x": np.stack(pieces), "state": state})
        found.append(log_probs)
    return once(np.concatenate(found, axis=1), graph), state


def pcm(samples):
    """16-bit samples, as a file holds them."""
    return (speech(samples) * 32768).round().clamp(-32768, 32767) / 32768


def test_it_says_what_the_model_says(wrapped):
    says_what_the_model_says(streaming_model(normalize_by_frames=True), *wrapped)


def test_so_do_chunks_that_look_ahead(looking_ahead):
    graph, runtime, model, _ = looking_ahead
    says_what_the_model_says(model, graph, runtime)


@torch.no_grad()
def test_a_phone_head_is_an_output_of_a_chunk(looking_ahead):
    graph, _, model, runtime = looking_ahead
    assert graph.outputs == ("log_probs", "frames", "new_state", "phone_log_probs")
    samples = torch.cat([torch.zeros(graph.before), pcm(graph.window - graph.before)])
    inputs = {
        "samples": samples[None].numpy(),
        "length": np.array([graph.window]),
        "state": np.zeros((1, graph.layout.size), "f4"),
    }
    tokens, frames, _, phones = runtime.run(None, inputs)
    (encoded,), _ = model.feed(model.init_state(1), [samples[graph.before :]])
    assert frames.tolist() == [len(encoded)] == [graph.chunk.chunk_frames]
    for found, expected in (
        (tokens, model.recognizer.ctc_log_probs(encoded)),
        (phones, model.recognizer.phone_log_probs(encoded)),
    ):
        assert np.abs(found[0] - expected.numpy()).max() < 1e-4


def says_what_the_model_says(model, graph, runtime):
    """Until the end, after which clients append zeros."""
    # Far from zero, which sherpa-onnx's integers blur.
    streams = [pcm(n) + 0.25 for n in (9600, 20011)]
    ended = [torch.cat([x, torch.zeros(24000 - len(x))]) for x in streams]
    got, _ = run(runtime, graph, ended)
    expected, _ = model.feed(model.init_state(2), streams, last=True)
    for row, frames in enumerate(map(model.ctc_log_probs, expected)):
        assert np.abs(got[row, : len(frames)] - frames.numpy()).max() < 1e-4
        assert (got[row, len(frames) :].argmax(-1) == 0).all()


def test_a_frame_of_sherpa_onnx_lasts_30_ms(wrapped):
    graph, runtime = wrapped
    state = np.zeros((1, state_dim(graph)), "f2")
    calls, frames = 64, 0
    for _ in range(calls):
        piece = np.ones((1, PIECE, 1), "i4")
        log_probs, state = runtime.run(None, {"x": piece, "state": state})
        frames += log_probs.shape[1]
    waiting = decode(state)[0, -2]
    heard_ms = (calls * PIECE - waiting) / 16
    # A tick that begins in the last of these milliseconds is there already.
    assert frames == math.ceil(heard_ms / 30)


def test_short_frames_are_all_given():
    stft = types.SimpleNamespace(sample_rate=16000)
    features = types.SimpleNamespace(compute_STFT=stft)
    graph = types.SimpleNamespace(
        shift=2560,
        chunk=ChunkRule(8),
        extractor=types.SimpleNamespace(features=features),
    )
    assert frame_and_tick(graph) == (320, 320)


def decode(state):
    """What the three halves of each number stand for."""
    halves = state.astype("f4").reshape(len(state), len(SCALES), -1)
    return (halves * np.array(SCALES, "f4")[:, None]).sum(1, dtype="f4")


def encode(numbers):
    parts, rest = [], numbers.astype("f4")
    for scale in np.array(SCALES, "f4"):
        parts.append((rest / scale).astype("f2"))
        rest = rest - parts[-1].astype("f4") * scale
    return np.concatenate(parts, axis=1)


def test_a_state_that_waits_stays_to_the_last_bit(wrapped):
    graph, runtime = wrapped
    size = graph.layout.size
    scales = 10.0 ** np.linspace(-2, 6, size)
    numbers = np.zeros((1, size + graph.window + 2), "f4")
    numbers[:, :size] = np.random.default_rng(0).normal(size=size) * scales
    state = encode(numbers)
    assert np.array_equal(decode(state), numbers)
    piece = np.ones((1, PIECE, 1), "i4")
    log_probs, after = runtime.run(None, {"x": piece, "state": state})
    assert log_probs.shape[1] == 0
    assert np.array_equal(decode(after)[:, :size], numbers[:, :size])
    assert decode(after)[0, -2:].tolist() == [PIECE, 0]


def test_the_state_of_a_stream_is_that_of_the_chunks(chunks, wrapped):
    graph, runtime = wrapped
    _, _, inner = chunks
    samples = pcm(16 * PIECE) + 0.25
    _, state = run(runtime, graph, [samples])
    expected = np.zeros((1, graph.layout.size), "f4")
    padded = np.concatenate([np.zeros(graph.before), samples.numpy()]).astype("f4")
    length, begin = np.array([graph.window]), 0
    while begin + graph.window <= len(padded):
        window = padded[None, begin : begin + graph.window]
        inputs = {"samples": window, "length": length, "state": expected}
        expected = inner.run(None, inputs)[2]
        begin += graph.shift
    assert begin > 10 * graph.shift
    worst = np.abs(decode(state)[0, : graph.layout.size] - expected[0]).max()
    assert worst < 1e-6 * np.abs(expected).max()


def test_a_batch_out_of_step_fails_and_says_what_to_do(wrapped):
    graph, runtime = wrapped
    state = np.zeros((2, state_dim(graph)), "f2")
    piece = np.ones((1, PIECE, 1), "i4")
    both = np.concatenate([piece, piece])
    _, later = runtime.run(None, {"x": piece, "state": state[:1]})
    mixed = np.concatenate([state[:1], later])
    with pytest.raises(Exception, match=IN_STEP):
        for _ in range(4):
            _, mixed = runtime.run(None, {"x": both, "state": mixed})


def test_chunks_shorter_than_a_call_are_refused():
    stft = types.SimpleNamespace(sample_rate=16000)
    features = types.SimpleNamespace(compute_STFT=stft)
    extractor = types.SimpleNamespace(features=features)
    graph = types.SimpleNamespace(shift=1280, extractor=extractor)
    with pytest.raises(ValueError, match="at least 150 ms"):
        t_one(None, graph)


def test_the_blank_gets_its_name():
    assert tokens_text(["<unk>", "▁", "A"]) == "<blk> 0\n▁ 1\nA 2\n"
