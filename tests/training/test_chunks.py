"""Dynamic chunk training: what is drawn, what is decoded, and what is refused."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.utils.dynamic_chunk_training import (
    DynChunkTrainConfig,
    DynChunkTrainConfigRandomSampler,
)
from streaming_model import streaming_config

from hyperconformer.encoders.branchformer import BranchformerEncoder
from hyperconformer.encoders.transformer import TransformerEncoder
from hyperconformer.model.chunks import LookAheadConfig, chunk_config, chunk_rule
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


def test_a_right_context_is_drawn_for_a_part_of_the_chunks():
    sampler = settings(right_context_prob=0.5).dynchunktrain_config_sampler
    drawn = [sampler(sb.Stage.TRAIN) for _ in range(1000)]
    chunks = [chunk_rule(chunk) for chunk in drawn if chunk is not None]
    ahead = [chunk for chunk in chunks if chunk.right_frames]
    # Half of about 600; four standard deviations are 49.
    assert abs(len(ahead) - len(chunks) / 2) <= 49
    assert {chunk.right_frames for chunk in ahead} == set(range(1, 9))
    assert any(chunk.left_chunks is None for chunk in ahead)
    assert any(chunk.left_chunks is not None for chunk in ahead)
    assert sampler(sb.Stage.VALID) is None


def test_without_a_right_context_the_same_chunks_are_drawn_as_ever():
    sampler = settings().dynchunktrain_config_sampler
    stock = DynChunkTrainConfigRandomSampler(
        **{
            field.name: getattr(sampler, field.name)
            for field in dataclasses.fields(DynChunkTrainConfigRandomSampler)
        }
    )
    draws = []
    for sample in (sampler, stock):
        torch.manual_seed(0)
        draws.append([sample(sb.Stage.TRAIN) for _ in range(50)])
    assert draws[0] == draws[1]


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
    loaded = settings(test_right_context_ms=160, test_chunks_ms=[None, 480])
    assert chunks_to_test(loaded) == {
        "": None,
        "_480+160ms": LookAheadConfig(12, None, 4),
    }


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
        ({"test_right_context_ms": 50}, "a multiple of 40 ms, got 50 ms"),
        ({"test_right_context_ms": -40}, "a multiple of 40 ms, got -40 ms"),
        (
            {"test_right_context_ms": 80, "test_chunks_ms": [None]},
            "test_right_context_ms: 80 needs chunks in test_chunks_ms",
        ),
        (
            {"right_context_prob": 0.5, "chunkwise_prob": 0.0},
            "right_context_prob needs chunks",
        ),
        ({"right_context_prob": 2}, "right_context_prob must be in [0, 1], got 2"),
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
        ({"right_context_min": 9}, "1 <= min <= max, got 9 and 8"),
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


@pytest.mark.parametrize("changes", [{"test_right_context_ms": 80}, {}])
def test_an_encoder_that_knows_no_chunks_is_named_before_the_training(changes):
    loaded = settings(**changes)
    loaded.recognizer.transformer.encoder = TransformerEncoder(
        1, 16, d_ffn=16, nhead=2, attention_type="RoPEMHA"
    )
    if changes:
        with pytest.raises(ValueError, match="TransformerEncoderLayer cannot look"):
            check_chunk_training(loaded)
        return
    check_chunk_training(loaded)
    loaded.recognizer.transformer.encoder = BranchformerEncoder(
        1, 16, nhead=2, csgu_linear_units=16
    )
    with pytest.raises(ValueError, match="Branchformer cannot honour a chunk rule"):
        check_chunk_training(loaded)


def test_speechbrains_own_sampler_draws_chunks_too():
    loaded = settings()
    loaded.dynchunktrain_config_sampler = DynChunkTrainConfigRandomSampler(
        0.5, 8, 32, 0.5, 2, 16
    )
    check_chunk_training(loaded)
