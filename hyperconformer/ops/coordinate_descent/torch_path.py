"""Coordinate-descent routing, all rows at once."""

import torch


def token_log_weights(scores, price, eps=0.03):
    """Log weight of tokens at a given price: log w = min(s + a, 0) / eps.

    Arguments
    ---------
    scores : torch.Tensor
        (..., N) floating scores s.
    price : torch.Tensor
        (..., 1) the dual variable a; tokens with s >= -a have full weight.
    eps : float
        Entropy weight.

    Returns
    -------
    torch.Tensor
        (..., N) log weights, at most 0.

    Example
    -------
    >>> token_log_weights(torch.tensor([2.0, 0.9]), torch.tensor([-1.0]), eps=0.1)
    tensor([ 0.0000, -1.0000])
    """
    return (scores + price).clamp(max=0.0) / eps


def coordinate_descent(
    scores, mass, *, keep=None, iterations=20, eps=0.03, eps_init=4.0, eps_decay=0.7
):
    """Log weights of each row's tokens, and the price that separates them.

    Arguments
    ---------
    scores : torch.Tensor
        (..., N) float32 or float64 scores s.
    mass : torch.Tensor
        (...) total weight kappa of each row, above 0, same dtype.
    keep : torch.Tensor, optional
        (..., N) bool, True = a real token; what the others hold is never read.
    iterations : int
        Steps of the descent, at least 1.
    eps : float
        Last and smallest entropy weight.
    eps_init : float
        First entropy weight.
    eps_decay : float
        Factor from one step to the next.

    Returns
    -------
    log_weights : torch.Tensor
        (..., N) log weights, at most 0. Masked tokens have a huge negative number,
        which keeps gradients finite where -inf would not.
    price : torch.Tensor
        (..., 1) the dual variable a of each row.

    Raises
    ------
    ValueError
        If ``iterations`` is below 1.

    Example
    -------
    >>> scores = torch.tensor([[3.0, 0.0, 2.0]])
    >>> log_weights, price = coordinate_descent(scores, torch.tensor([2.0]))
    >>> log_weights.exp().round()
    tensor([[1., 0., 1.]])
    """
    if iterations < 1:
        raise ValueError(f"iterations must be >= 1, got {iterations}")
    # A quarter of the range, so that sums and differences of two stay finite.
    hidden = torch.finfo(scores.dtype).min / 4
    if keep is None:
        keep = torch.ones_like(scores, dtype=torch.bool)
    scores = scores.masked_fill(~keep, 0.0)
    log_mass = mass.unsqueeze(-1).log()
    slack = -scores
    current = max(eps_init, eps)
    for _ in range(iterations):
        exponents = ((scores + slack) / current).masked_fill(~keep, hidden)
        price = current * (log_mass - exponents.logsumexp(-1, keepdim=True))
        slack = -torch.relu(scores + price)
        current = max(current * eps_decay, eps)
    log_weights = token_log_weights(scores, price, current)
    return log_weights.masked_fill(~keep, hidden), price


def select_tokens(log_weights, count):
    """The heaviest tokens of each row, ties going to the earliest token.

    ``torch.topk`` breaks ties as it likes, and weights often tie: every saturated
    token weighs exactly 1. A stable sort makes the choice reproducible.

    Arguments
    ---------
    log_weights : torch.Tensor
        (..., N) floating.
    count : int
        Tokens wanted; at most N are returned.

    Returns
    -------
    torch.Tensor
        (..., min(count, N)) int64 indices, heaviest first.

    Example
    -------
    >>> select_tokens(torch.tensor([0.0, -1.0, 0.0]), 2).tolist()
    [0, 2]
    """
    order = torch.sort(log_weights.detach(), dim=-1, descending=True, stable=True)
    return order.indices[..., :count]
