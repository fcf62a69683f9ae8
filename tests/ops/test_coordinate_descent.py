"""Coordinate-descent routing against its readable form, and its promises."""

import pytest
import torch

from hyperconformer.ops.coordinate_descent import (
    coordinate_descent,
    select_tokens,
    token_log_weights,
)
from hyperconformer.ops.coordinate_descent.reference import (
    coordinate_descent_reference,
    select_tokens_reference,
)


def random_rows(rows, tokens, dtype=torch.float64):
    """Scores, masses and masks; the first row is whole, the last fully masked."""
    scores = torch.randn(rows, tokens, dtype=dtype)
    keep = torch.rand(rows, tokens) > 0.3
    keep[0], keep[-1] = True, False
    return scores, torch.linspace(1.0, 4.0, rows, dtype=dtype), keep


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 63])
def test_equals_reference(masked, tokens):
    scores, mass, keep = random_rows(6, tokens)
    keep = keep if masked else None
    got, _ = coordinate_descent(scores, mass, keep=keep)
    expected = coordinate_descent_reference(scores, mass, keep)
    real = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-10)
    assert got.isfinite().all() and (got[~real] < -1e30).all()
    assert select_tokens(got, 3).tolist() == select_tokens_reference(got, 3).tolist()


def test_total_weight_goes_to_the_mass():
    scores = torch.randn(4, 200, dtype=torch.float64)
    mass = torch.full((4,), 20.0).double()
    far, _ = coordinate_descent(scores, mass)
    near, _ = coordinate_descent(scores, mass, iterations=400)
    assert (near <= 0).all()
    assert ((near.exp().sum(-1) - 20).abs() < 0.1).all()
    assert ((far.exp().sum(-1) - 20).abs() < 8).all()


def test_the_price_gives_back_the_weights():
    scores, mass, _ = random_rows(3, 30)
    log_weights, price = coordinate_descent(scores, mass)
    torch.testing.assert_close(token_log_weights(scores, price), log_weights)


def test_gradient():
    scores, mass, keep = random_rows(4, 6)
    # Away from saturation, where weights are flat, and from masked tokens.
    scores.requires_grad_()

    def weights(scores):
        return (
            coordinate_descent(scores, mass, keep=keep)[0].masked_fill(~keep, 0).exp()
        )

    assert torch.autograd.gradcheck(weights, (scores,))


def test_masked_tokens_reach_nothing():
    scores, mass, keep = random_rows(5, 12)
    dirty = scores.masked_fill(~keep, torch.nan).requires_grad_()
    got, price = coordinate_descent(dirty, mass, keep=keep)
    clean, clean_price = coordinate_descent(scores, mass, keep=keep)
    assert torch.equal(got, clean) and torch.equal(price, clean_price)
    got.masked_fill(~keep, 0).exp().sum().backward()
    assert dirty.grad.isfinite().all() and (dirty.grad[~keep] == 0).all()


def test_padding_a_row_changes_nothing():
    scores = torch.randn(1, 20, dtype=torch.float64)
    mass = torch.tensor([5.0]).double()
    alone, price = coordinate_descent(scores, mass)
    padded = torch.cat([scores, torch.randn(1, 13).double()], dim=1)
    keep = torch.arange(33)[None] < 20
    got, padded_price = coordinate_descent(padded, mass, keep=keep)
    torch.testing.assert_close(got[:, :20], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded_price, price, rtol=0, atol=1e-12)


def test_ties_go_to_the_earliest_token():
    # Strong logits saturate far more than k tokens, all of weight exactly 1. topk
    # picks among them as it likes; its answer depends on device and version.
    scores = torch.full((1, 100), 50.0)
    scores[0, ::2] = -50.0
    log_weights, _ = coordinate_descent(scores, torch.tensor([60.0]))
    assert (log_weights[0, 1::2] == 0).all()
    assert select_tokens(log_weights, 4).tolist() == [[1, 3, 5, 7]]


def test_weights_too_small_for_exp_still_rank():
    # exp(-1000) is 0: the order is that of the logarithms.
    log_weights = torch.tensor([[-3000.0, -1000.0, -2000.0]])
    assert select_tokens(log_weights, 2).tolist() == [[1, 2]]


def test_float32_and_large_scores():
    scores, mass, keep = random_rows(5, 40, torch.float32)
    got, _ = coordinate_descent(scores, mass, keep=keep)
    exact, _ = coordinate_descent(scores.double(), mass.double(), keep=keep)
    torch.testing.assert_close(
        got[keep].exp(), exact[keep].exp().float(), rtol=0, atol=2e-4
    )
    huge, price = coordinate_descent(1e4 * scores, mass, keep=keep)
    assert huge.isfinite().all() and price.isfinite().all()


def test_no_iterations_is_refused():
    with pytest.raises(ValueError, match="iterations must be >= 1, got 0"):
        coordinate_descent(torch.randn(1, 3), torch.ones(1), iterations=0)
