"""A stream costs as much at its end as at its beginning."""

import pytest
import torch
from streaming_model import streaming_config

from benchmarks.report import streaming_table
from benchmarks.streaming import MODELS, cost_of_an_hour
from hyperconformer.streaming import StreamingModel

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
    row = cost_of_an_hour(tiny_model("hypermixing"), "hypermixing", audio_s=130)
    assert row.rounds == 94 and row.frames == 203 * 16
    assert row.kept_bytes == row.peer_kept_bytes > 0
    assert row.peak_bytes >= row.peer_peak_bytes > 0
    _, _, line = streaming_table([row]).splitlines()
    real_time = row.peer_p50_ms / 640
    assert line.startswith(f"| hypermixing | {real_time:.4f} | {row.p50_ms / 640:.4f}")


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MODELS)
def test_an_hour_costs_the_same_each_minute(mixer):
    row = cost_of_an_hour(tiny_model(mixer), mixer)
    assert row.kept_bytes == row.peer_kept_bytes
    assert 1 / row.ratio_p50 <= 1.1
    # A frame kept in each of the hour's 90,000 would take three times as much.
    assert row.peak_bytes <= row.peer_peak_bytes + 2**21
