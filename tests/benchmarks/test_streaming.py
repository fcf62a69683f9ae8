"""A stream costs as much at its end as at its beginning."""

import pytest
import torch
from streaming_model import streaming_config

from benchmarks import streaming
from benchmarks.report import streaming_table
from benchmarks.streaming import MODELS, Listener, cost_of_an_hour
from hyperconformer.training.results import peak_memory_bytes
from hyperconformer.transcribe.streaming import StreamingModel

OPTIONS = {
    "hypermixing": {"normalize_by_frames": True},
    "hyperglu": {"block_size": 16},
    "linear_attention": {"causal": True},
}


def tiny_model(mixer):
    torch.manual_seed(0)
    config = streaming_config(attention_type=mixer, mixer_options=OPTIONS.get(mixer))
    left_ms = 640 if mixer == "RoPEMHA" else None
    return StreamingModel(config["extractor"], config["recognizer"], 640, left_ms)


def test_the_row_says_what_was_measured():
    row = cost_of_an_hour(tiny_model("hypermixing"), "hypermixing", audio_s=80)
    assert row.rounds == 94 and row.frames == 125 * 16
    assert row.kept_bytes == row.peer_kept_bytes > 0
    _, _, line = streaming_table([row]).splitlines()
    real_time = row.peer_p50_ms / 640
    assert line.startswith(f"| hypermixing | {real_time:.4f} | {row.p50_ms / 640:.4f}")


@pytest.mark.parametrize("mixer", MODELS)
def test_chunks_that_are_skipped_leave_the_state_of_single_steps(mixer, monkeypatch):
    model, states = tiny_model(mixer), []
    for at_once in (1, 3):
        monkeypatch.setattr(streaming, "AT_ONCE", at_once)
        torch.manual_seed(1)
        listener = Listener(model)
        listener.skip_chunks(7)
        states.append(listener.state.tensors)
    for name, tensor in states[0].items():
        assert torch.allclose(tensor.float(), states[1][name].float(), atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MODELS)
def test_an_hour_costs_the_same_each_minute(mixer):
    row = cost_of_an_hour(tiny_model(mixer), mixer)
    assert row.kept_bytes == row.peer_kept_bytes
    assert 1 / row.ratio_p50 <= 1.1


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MODELS)
def test_memory_is_flat_for_an_hour(mixer):
    listener, peaks = Listener(tiny_model(mixer)), []
    for _ in range(60):
        for _ in range(94):
            listener.hear_chunk()
        peaks.append(peak_memory_bytes("cpu"))
    # A frame kept in each of the hour's 90,000 would take three times as much.
    assert peaks[-1] <= peaks[0] + 2**21
