"""Routes: the tokens that coordinate descent picks for each expert."""

import math
from typing import NamedTuple

import torch

from hyperconformer.ops.coordinate_descent.torch_path import (
    coordinate_descent,
    select_tokens,
    token_log_weights,
)

# CoLT5 asks the descent for a little more mass than tokens are taken, so that the
# ones just outside learn too.
MASS_RATIO = 9 / 8
EPS = 0.03


class Route(NamedTuple):
    """Which tokens each expert gets.

    Attributes
    ----------
    index : torch.Tensor
        (..., E, K) int64 positions, heaviest first.
    weight : torch.Tensor
        (..., E, K) floating, 0 where ``keep`` is False.
    keep : torch.Tensor
        (..., E, K) bool, False where fewer than K tokens could be taken.
    """

    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index
    weight: torch.Tensor
    keep: torch.Tensor


def log_weights_and_price(scores, keep, count, num_tokens=None):
    """Descent towards ``count`` tokens a row; rows with no more than that take all.

    The target mass is min(9/8 count, n). Here n is each row's own number of real
    tokens, so that padding changes nothing; the published n counts padding.

    Arguments
    ---------
    scores : torch.Tensor
        (..., N) float32 or float64.
    keep : torch.Tensor
        (..., N) bool, True = a real token, broadcastable to ``scores``.
    count : int
        Tokens wanted.
    num_tokens : int, optional
        The n of rows whose length does not depend on the batch, such as windows.

    Returns
    -------
    log_weights : torch.Tensor
        (..., N), at most 0, hugely negative where not kept.
    price : torch.Tensor
        (..., 1); +inf where every token is taken.
    """
    scores, keep = torch.broadcast_tensors(scores, keep)
    available = keep.sum(-1, keepdim=True)
    if num_tokens is not None:
        available = torch.full_like(available, num_tokens)
    mass = available.clamp(min=1).to(scores.dtype).clamp(max=MASS_RATIO * count)
    mass = mass.squeeze(-1)
    log_weights, price = coordinate_descent(scores, mass, keep=keep, eps=EPS)
    takes_all = available <= count
    return (
        log_weights.masked_fill(takes_all & keep, 0.0),
        price.masked_fill(takes_all, math.inf),
    )


def take(log_weights, keep, index, straight_through):
    """The tokens at ``index`` as a :class:`Route`.

    Arguments
    ---------
    log_weights : torch.Tensor
        (..., E, N).
    keep : torch.Tensor
        (..., E, N) bool, True = may be taken.
    index : torch.Tensor
        (..., E, K) int64.
    straight_through : bool
        Whether weights read exactly 1 while gradients see the real weight.

    Returns
    -------
    Route
    """
    kept = keep.expand_as(log_weights).gather(-1, index)
    weight = log_weights.gather(-1, index).masked_fill(~kept, 0.0).exp()
    if straight_through:
        weight = weight + (1 - weight).detach()
    return Route(index, weight.masked_fill(~kept, 0.0), kept)


def route(scores, keep, count, straight_through=True, num_tokens=None):
    """Choose the ``count`` heaviest tokens; of equal ones, the earliest.

    Arguments
    ---------
    scores : torch.Tensor
        (..., E, N) float32 or float64.
    keep : torch.Tensor
        (..., 1 or E, N) bool, True = a real token.
    count : int
        Tokens for each expert.
    straight_through : bool
        Whether weights read exactly 1 while gradients see the real weight.
    num_tokens : int, optional
        As in :func:`log_weights_and_price`.

    Returns
    -------
    Route

    Example
    -------
    >>> scores = torch.tensor([[[0.0, 3.0, 1.0, 3.0]]])
    >>> keep = torch.tensor([[[True, True, True, True]]])
    >>> route(scores, keep, 2).index.tolist()
    [[[1, 3]]]
    """
    log_weights, _ = log_weights_and_price(scores, keep, count, num_tokens)
    return take(log_weights, keep, select_tokens(log_weights, count), straight_through)


def route_causally(past_scores, past_keep, scores, keep, count, straight_through=True):
    """Choose tokens without looking ahead, at the price of the window before.

    A token whose weight at that price is one half or more is taken when it comes,
    until ``count`` are: the choice at a frame reads nothing after it.

    Arguments
    ---------
    past_scores : torch.Tensor
        (..., E, N) scores of the window before.
    past_keep : torch.Tensor
        (..., 1 or E, N) bool, True = a real token.
    scores : torch.Tensor
        (..., E, N) scores of this window.
    keep : torch.Tensor
        (..., 1 or E, N) bool, True = a real token.
    count : int
        Tokens for each expert.
    straight_through : bool
        Whether weights read exactly 1 while gradients see the real weight.

    Returns
    -------
    Route
        In order of time.

    Example
    -------
    >>> past = torch.tensor([[[0.0, 3.0, 0.0, 3.0]]])
    >>> now = torch.tensor([[[4.0, -1.0, 4.0, 4.0]]])
    >>> everywhere = torch.ones(1, 1, 4, dtype=torch.bool)
    >>> route_causally(past, everywhere, now, everywhere, 2).index.tolist()
    [[[0, 2]]]
    """
    _, price = log_weights_and_price(past_scores, past_keep, count)
    log_weights = token_log_weights(scores, price, EPS)
    willing = keep & (log_weights >= math.log(0.5))
    taken = willing & (willing.cumsum(-1) <= count)
    index = select_tokens(taken.to(scores.dtype), count)
    return take(log_weights, taken, index, straight_through)


def gather_tokens(x, index):
    """Pick frames: (B, N, D) at (B, E, K) gives (B, E, K, D)."""
    batch, experts, count = index.shape
    flat = index.reshape(batch, experts * count, 1).expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).view(batch, experts, count, x.shape[-1])
