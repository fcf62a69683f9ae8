"""The sum over all label sequences: by enumeration, its gradients, its trigrams."""

import itertools
import math

import pytest
import torch

from hyperconformer.training.ctc_crf import estimate_trigrams, score_all_sequences

SEQUENCES = [[1, 2, 2], [2, 1], [1, 1, 2, 1], []]


def enumerate_paths(log_probs, trigrams):
    """Add the probabilities of all paths of blanks and labels."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = [label for label, _ in itertools.groupby(path) if label]
        history = 0, 0, *labels, 0
        weights = [trigrams[history[i : i + 3]].item() for i in range(len(labels) + 1)]
        heard = sum(log_probs[t, label].item() for t, label in enumerate(path))
        total += math.exp(heard) * math.prod(weights)
    return math.log(total)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_all_sequences_are_summed(frames):
    torch.manual_seed(0)
    trigrams = estimate_trigrams(SEQUENCES, 2).double()
    log_probs = torch.randn(2, 5, 3, dtype=torch.float64).log_softmax(-1)
    sums = score_all_sequences(log_probs, torch.tensor([5, frames]), trigrams)
    expected = [
        enumerate_paths(log_probs[0], trigrams),
        enumerate_paths(log_probs[1, :frames], trigrams),
    ]
    assert sums.tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_are_those_of_the_sum_and_stop_at_padding():
    torch.manual_seed(0)
    trigrams, lengths = estimate_trigrams(SEQUENCES, 2).double(), torch.tensor([4, 2])
    scores = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def total(scores):
        return score_all_sequences(scores.log_softmax(-1), lengths, trigrams)

    assert torch.autograd.gradcheck(total, scores)
    total(scores).sum().backward()
    assert scores.grad[1, 2:].eq(0).all()
    assert scores.grad[1, :2].ne(0).all()


def test_long_and_certain_utterances_stay_finite():
    # 1500 frames are a minute: products of probabilities are below the smallest float.
    trigrams = estimate_trigrams(SEQUENCES, 2)
    scores = (40 * torch.randn(1, 1500, 3)).requires_grad_()
    lengths = torch.tensor([1500])
    single = score_all_sequences(scores.log_softmax(-1), lengths, trigrams)
    single.sum().backward()
    assert scores.grad.isfinite().all()
    double = score_all_sequences(
        scores.detach().double().log_softmax(-1), lengths, trigrams.double()
    )
    # Each frame rounds its scale to 24 bits.
    assert single.item() == pytest.approx(double.item(), rel=1500 * 2**-24)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    trigrams, lengths = estimate_trigrams(SEQUENCES, 2), torch.tensor([9])
    log_probs = torch.randn(1, 9, 3).log_softmax(-1)
    expected = score_all_sequences(log_probs, lengths, trigrams)
    with torch.autocast("cpu", torch.bfloat16):
        assert score_all_sequences(log_probs, lengths, trigrams).equal(expected)


def test_trigrams_are_smoothed_as_witten_and_bell():
    trigrams = estimate_trigrams([[1, 2], [1, 1]], 2)
    assert trigrams.sum(-1).allclose(torch.ones(3, 3))
    # Of 6 labels, the end among them, 3 are ones; 3 kinds share 3 of 9 parts.
    unigram = (3 + 3 * (1 / 3)) / 9
    # After 1 come 1, 2 and the end, once each.
    bigram = (1 + 3 * unigram) / 6
    # After the start and 1 come 1 and 2.
    assert trigrams[0, 1, 1].item() == pytest.approx((1 + 2 * bigram) / 4)
    # No sequence has 2 twice before another label: the bigrams of 2 count.
    unigram = (1 + 3 * (1 / 3)) / 9
    assert trigrams[2, 2, 2].item() == pytest.approx(1 * unigram / 2)
