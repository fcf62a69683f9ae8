"""The same as :mod:`.torch_path`, one row and one number at a time, to be read."""

import math

import torch


def coordinate_descent_reference(
    scores, mass, keep=None, iterations=20, eps=0.03, eps_init=4.0, eps_decay=0.7
):
    """Log weights of the tokens of each row; masked tokens are left out altogether.

    Arguments
    ---------
    scores : torch.Tensor
        (R, N) floating scores s.
    mass : torch.Tensor
        (R,) the total weight kappa of each row.
    keep : torch.Tensor, optional
        (R, N) bool, True = a real token.
    iterations : int
        Steps of the descent.
    eps : float
        Last and smallest entropy weight.
    eps_init : float
        First entropy weight.
    eps_decay : float
        Factor between two steps.

    Returns
    -------
    torch.Tensor
        (R, N) log weights, -inf at masked tokens.

    Example
    -------
    >>> scores = torch.tensor([[3.0, 0.0, 2.0]])
    >>> coordinate_descent_reference(scores, torch.tensor([2.0])).exp().round()
    tensor([[1., 0., 1.]])
    """
    log_weights = torch.full_like(scores, -math.inf)
    for row in range(scores.shape[0]):
        kept = [n for n in range(scores.shape[1]) if keep is None or bool(keep[row, n])]
        if not kept:
            continue
        s = [scores[row, n].item() for n in kept]
        b = [-value for value in s]
        current = max(eps_init, eps)
        for _ in range(iterations):
            top = max((si + bi) / current for si, bi in zip(s, b))
            total = sum(math.exp((si + bi) / current - top) for si, bi in zip(s, b))
            a = current * (math.log(mass[row]) - top - math.log(total))
            b = [-max(si + a, 0.0) for si in s]
            current = max(current * eps_decay, eps)
        for n, si, bi in zip(kept, s, b):
            log_weights[row, n] = (si + a + bi) / current
    return log_weights


def select_tokens_reference(log_weights, count):
    """The ``count`` heaviest tokens of each row, ties going to the earliest token.

    Arguments
    ---------
    log_weights : torch.Tensor
        (R, N) floating.
    count : int
        Tokens wanted; at most N are returned.

    Returns
    -------
    torch.Tensor
        (R, min(count, N)) int64 indices.

    Example
    -------
    >>> select_tokens_reference(torch.tensor([[0.0, -1.0, 0.0]]), 2).tolist()
    [[0, 2]]
    """
    rows = [
        sorted(range(len(row)), key=lambda n, row=row: (-row[n], n))[:count]
        for row in log_weights.tolist()
    ]
    return torch.tensor(rows)
