"""Lengths, padding masks and chunk rules."""

import pytest
import torch

from hyperconformer.core.masks import (
    ChunkRule,
    chunk_mask,
    future_mask,
    lengths_to_padding_mask,
    relative_to_frames,
)


def test_relative_lengths_round_to_frames():
    assert relative_to_frames(torch.tensor([1e-6, 0.5, 1.0]), 9).tolist() == [1, 4, 9]


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_relative_length_outside_its_range_is_refused(bad):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        relative_to_frames(torch.tensor([0.5, bad]), 9)


def test_every_count_survives_the_round_trip_through_relative_lengths():
    for total in (1, 7, 999, 30000):
        counts = torch.unique(torch.linspace(1, total, 500).long())
        assert torch.equal(relative_to_frames(counts / total, total), counts)


def test_padding_mask_marks_padding():
    mask = lengths_to_padding_mask(torch.tensor([2, 3]), 3)
    assert mask.tolist() == [[False, False, True], [False, False, False]]


def test_future_mask_hides_exactly_the_future():
    for i, row in enumerate(future_mask(5).tolist()):
        assert row == [j > i for j in range(5)]


@pytest.mark.parametrize("left", [None, 0, 1, 3])
def test_chunk_mask_follows_its_definition(left):
    rule = ChunkRule(3, left_chunks=left)
    mask = chunk_mask(11, rule)
    for i in range(11):
        for j in range(11):
            visible = j // 3 <= i // 3 and (left is None or j // 3 >= i // 3 - left)
            assert mask[i, j].item() is not visible


@pytest.mark.parametrize("chunk,left", [(0, None), (-2, None), (4, -1)])
def test_impossible_chunk_rules_are_refused(chunk, left):
    with pytest.raises(ValueError, match="must be"):
        ChunkRule(chunk, left_chunks=left)


def test_a_mask_cannot_tell_right_frames():
    with pytest.raises(ValueError, match="honoured in look_ahead"):
        chunk_mask(8, ChunkRule(4, right_frames=1))
