"""Batches of joined utterances."""

import pytest
import torch

from hyperconformer.training.data import JoiningBatch


def examples(count):
    return [
        {
            "id": str(i),
            "sig": torch.full((3 + i,), float(i)),
            "words": f"W{i}",
            "tokens": torch.tensor([10 + i]),
            "tokens_bos": torch.tensor([1, 10 + i]),
            "tokens_eos": torch.tensor([10 + i, 2]),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("fraction,size", [(0.0, 7), (0.6, 5), (1.0, 4)])
def test_nothing_is_lost_or_doubled(fraction, size):
    batch = JoiningBatch(fraction)(examples(7))
    assert len(batch.id) == size
    assert sorted("+".join(batch.id).split("+")) == [str(i) for i in range(7)]
    assert sorted(" ".join(batch.words).split()) == [f"W{i}" for i in range(7)]


def test_a_pair_has_one_begin_and_one_end():
    batch = JoiningBatch(1.0)(examples(2))
    first, second = (10 + int(name) for name in batch.id[0].split("+"))
    assert batch.tokens.data.tolist() == [[first, second]]
    assert batch.tokens_bos.data.tolist() == [[1, first, second]]
    assert batch.tokens_eos.data.tolist() == [[first, second, 2]]
    assert batch.sig.data.shape == (1, 7)


def test_fraction_out_of_range_is_refused():
    with pytest.raises(ValueError, match="join_fraction"):
        JoiningBatch(1.5)
