"""sherpa-onnx itself, where it is installed (it is in no extra of this package)."""

import pathlib

import numpy as np
import pytest
import soundfile

from hyperconformer.export.check import TorchModel, greedy
from hyperconformer.export.folder import SHERPA_FOLDER, export_model
from hyperconformer.hub.folder import load_model
from hyperconformer.transcribe.streaming import StreamingModel

pytestmark = pytest.mark.slow
AN4 = pathlib.Path(__file__).parents[1] / "data/an4_test20"
RECORDINGS = sorted(AN4.glob("wav/*/*/*.flac"))
RATE_HZ, CHUNK_MS = 16000, 640
# A call of sherpa-onnx, and what it takes it for.
CALL_S, BELIEVED_S = 0.15, 0.03
SILENCE_S = 1.2


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    target = tmp_path_factory.mktemp("export") / "exported"
    folder = export_model("hyperconformer-an4-streaming", target, chunk_ms=CHUNK_MS)
    return sherpa_onnx.OnlineRecognizer.from_t_one_ctc(
        model=str(folder / SHERPA_FOLDER / "model.onnx"),
        tokens=str(folder / SHERPA_FOLDER / "tokens.txt"),
        num_threads=1,
        enable_endpoint_detection=True,
        rule1_min_trailing_silence=SILENCE_S,
    )


def recordings():
    """16-bit samples as floats."""
    return [soundfile.read(path, dtype="float32")[0] for path in RECORDINGS]


def test_the_words_are_those_of_pytorch(recognizer):
    modules = ("extractor", "recognizer")
    config, tokenizer = load_model("hyperconformer-an4-streaming", modules)
    modules = tuple(config[name] for name in modules)
    model = TorchModel(modules, StreamingModel(*modules, CHUNK_MS))
    for samples in recordings():
        # What is one away from zero does not arrive.
        samples[np.abs(samples) < 1.5 / 32768] = 0
        stream = recognizer.create_stream()
        stream.accept_waveform(8000, samples)
        stream.accept_waveform(8000, np.zeros(RATE_HZ, "f4"))
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        expected = tokenizer.decode_ids(greedy(model.log_probs(samples)))
        assert recognizer.get_result(stream).split() == expected.split()


def test_a_pause_ends_a_segment_and_times_are_those_of_the_recording(recognizer):
    noise = np.random.default_rng(0).normal(0, 3e-4, int(3.5 * RATE_HZ)).astype("f4")
    parts, places, heard = [], [], 0.0
    for samples in recordings():
        parts += [samples, noise]
        places.append((heard, heard + len(samples) / RATE_HZ))
        heard += (len(samples) + len(noise)) / RATE_HZ
    stream, segments = recognizer.create_stream(), []
    piece = RATE_HZ // 10
    samples = np.concatenate(parts)
    for begin in range(0, len(samples), piece):
        stream.accept_waveform(8000, samples[begin : begin + piece])
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        if recognizer.is_endpoint(stream):
            found = recognizer.get_result_all(stream)
            start = found.start_time * CALL_S / BELIEVED_S
            if found.text:
                now = (begin + piece) / RATE_HZ
                segments.append((start + found.timestamps[-1], now))
            recognizer.reset(stream)
    assert len(segments) == len(places)
    for (last, now), (begin, end) in zip(segments, places):
        # The last token may be recognised a frame after the recording's end.
        assert begin < last < end + 0.04
        # Its chunk, and two calls of which sherpa-onnx keeps one back.
        assert now - last > SILENCE_S
        assert now < end + SILENCE_S + CHUNK_MS / 1000 + 2 * CALL_S
