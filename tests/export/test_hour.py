"""An hour in sherpa-onnx's contract, whose state is float16, ends as in PyTorch."""

import pathlib

import numpy as np
import pytest
import soundfile
import torch
from export.conftest import once, session

from hyperconformer.export.check import greedy
from hyperconformer.export.graph import to_onnx
from hyperconformer.export.sherpa import PIECE, state_dim, t_one
from hyperconformer.export.streaming import StreamingGraph
from hyperconformer.hub.folder import load_model
from hyperconformer.transcribe.streaming import StreamingModel

SPEECH = pathlib.Path(__file__).parents[1] / "data/an4/cen6-fvap-b.wav"
HOUR = 3600 * 16000


@pytest.mark.slow
def test_the_words_of_an_hour_are_pytorchs(tmp_path):
    modules = ("extractor", "recognizer")
    config, _ = load_model("hyperconformer-an4-streaming", modules)
    model = StreamingModel(*(config[name] for name in modules))
    graph = StreamingGraph(model)
    runtime = session(t_one(to_onnx(graph), graph), tmp_path / "t.onnx")
    speech, _ = soundfile.read(SPEECH, dtype="int16")
    rng = np.random.default_rng(0)
    state, ours = model.init_state(1), np.zeros((1, state_dim(graph)), "f2")
    expected, got, waiting, done = [], [], np.zeros(0, "i4"), 0
    while done < HOUR:
        # At another level each time. What is one away from zero does not arrive.
        spoken = (speech * rng.uniform(0.3, 1.0)).astype("i4")
        spoken[np.abs(spoken) == 1] = 0
        waiting, done = np.concatenate([waiting, spoken]), done + len(spoken)
        whole = len(waiting) // PIECE * PIECE
        pieces, waiting = waiting[:whole].reshape(-1, PIECE), waiting[whole:]
        wav = torch.from_numpy(pieces.ravel().astype("f4") / 32768)
        frames, state = model.feed(state, [wav])
        with torch.no_grad():
            expected.append(model.ctc_log_probs(frames[0]).numpy())
        for piece in pieces:
            piece = piece - np.sign(piece)  # as sherpa-onnx makes integers
            inputs = {"x": piece[None, :, None].astype("i4"), "state": ours}
            log_probs, ours = runtime.run(None, inputs)
            got.append(log_probs)
    expected, got = np.concatenate(expected), once(np.concatenate(got, 1), graph)[0]
    assert len(got) == len(expected) > 80000
    assert np.isfinite(ours).all()
    words = greedy(expected)
    assert len(words) > 5000 and greedy(got) == words
    assert np.abs(got - expected).max() < 1e-4
