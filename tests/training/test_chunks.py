"""Dynamic chunk training: what is drawn, what is decoded, and what is refused."""

import re
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from streaming_model import streaming_config

from hyperconformer.model.chunks import chunk_config
from hyperconformer.model.features import frame_ms
from hyperconformer.training.chunks import check_chunk_training, chunks_to_test


def settings(**changes):
    changes.setdefault("attention_type", "RoPEMHA")
    return SimpleNamespace(**streaming_config(**changes))


def test_chunks_are_drawn_for_a_part_of_the_batches():
    sampler = settings().dynchunktrain_config_sampler
    drawn = [sampler(sb.Stage.TRAIN) for _ in range(500)]
    chunks = [chunk for chunk in drawn if chunk is not None]
    # 0.6 of 500; four standard deviations are 44.
    assert 256 <= len(chunks) <= 344
    assert {chunk.chunk_size for chunk in chunks} == set(range(8, 33))
    assert any(chunk.left_context_size is None for chunk in chunks)
    assert sampler(sb.Stage.VALID) is None


def test_every_rule_gets_a_name():
    loaded = settings(test_left_context_ms=1000)
    assert frame_ms(loaded.extractor, loaded.recognizer.frontend) == 40
    assert chunks_to_test(loaded) == {
        "": None,
        "_1280ms": DynChunkTrainConfig(32, 1),
        "_640ms": DynChunkTrainConfig(16, 2),
        "_320ms": DynChunkTrainConfig(8, 4),
    }
    assert chunk_config(640, None, 40.0) == DynChunkTrainConfig(16, None)


def test_the_rule_reaches_the_encoder():
    recognizer = settings().recognizer
    features, lengths = torch.randn(1, 200, 80), torch.tensor([200])
    rule = DynChunkTrainConfig(8)
    before = recognizer(features, lengths, None, rule).ctc
    features[:, 100:] = torch.randn(1, 100, 80)
    after = recognizer(features, lengths, None, rule).ctc
    # Feature 100 belongs to frame 25, in the chunk of frames 24 to 31.
    assert torch.equal(before[:, :24], after[:, :24])
    assert (before[:, 24] != after[:, 24]).any()
    assert not torch.equal(recognizer(features, lengths).ctc, after)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"test_chunks_ms": []}, "test_chunks_ms is empty"),
        ({"test_chunks_ms": [650]}, "multiple of 40 ms, got 650 ms"),
        ({"test_chunks_ms": [0]}, "multiple of 40 ms, got 0 ms"),
        ({"test_left_context_ms": -1}, ">= 0 ms and finite, got -1"),
        ({"chunkwise_prob": 1.5}, "chunkwise_prob must be in [0, 1], got 1.5"),
        ({"limited_left_context_prob": -1}, "limited_left_context_prob must be"),
        ({"attention_type": "mixture_of_attention"}, "cannot honour a chunk rule"),
        (
            {
                "attention_type": "hyperglu",
                "mixer_options": {"block_size": 64},
                "limited_left_context_prob": 0.1,
            },
            "give more left context",
        ),
    ],
)
def test_mistakes_are_named_before_the_training(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_chunk_training(settings(**changes))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"chunk_size_min": 33}, "1 <= min <= max, got 33 and 32"),
        ({"chunk_size_min": 0}, "got 0 and 32"),
        ({"left_context_chunks_min": -1}, "0 <= min <= max, got -1 and 16"),
        ({"test_config": DynChunkTrainConfig(4)}, "in test_chunks_ms"),
    ],
)
def test_a_sampler_out_of_range_is_refused(changes, message):
    loaded = settings()
    for name, value in changes.items():
        setattr(loaded.dynchunktrain_config_sampler, name, value)
    with pytest.raises(ValueError, match=message):
        check_chunk_training(loaded)
