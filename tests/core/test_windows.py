"""Windows: the chunks of a sequence with what follows them."""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.core.windows import own_frames, unfold, window_padding


@pytest.mark.parametrize("frames", [1, 3, 4, 7, 8, 9])
@pytest.mark.parametrize("right", [0, 1, 6])
def test_a_window_holds_its_chunk_and_what_follows(frames, right):
    rule = ChunkRule(4, right_frames=right)
    x = torch.randn(2, frames, 3)
    windows = unfold(x, rule)
    assert windows.shape == (2, -(-frames // 4), 4 + right, 3)
    for index in range(windows.shape[1]):
        real = x[:, 4 * index : 4 * index + 4 + right]
        assert torch.equal(windows[:, index, : real.shape[1]], real)
        assert not windows[:, index, real.shape[1] :].any()
    assert torch.equal(own_frames(windows, rule, frames), x)


def test_padding_is_that_of_the_sequence_and_what_lies_behind_it():
    rule = ChunkRule(2, right_frames=1)
    x, mask = torch.randn(2, 3, 1), lengths_to_padding_mask(torch.tensor([3, 1]), 3)
    assert window_padding(mask, x, rule).int().tolist() == [
        [[0, 0, 0], [0, 1, 1]],
        [[0, 1, 1], [1, 1, 1]],
    ]
    assert window_padding(None, x, rule)[1].int().tolist() == [[0, 0, 0], [0, 1, 1]]


def test_a_negative_look_ahead_is_refused():
    with pytest.raises(ValueError, match="right_frames must be >= 0, got -1"):
        ChunkRule(4, right_frames=-1)
