"""Monomials of growing degree, each made from the one before."""

import torch


def polynomial(factors, degree):
    """The running products of ``degree`` groups of channels.

    Arguments
    ---------
    factors : torch.Tensor
        (..., degree E) the factors h(W_1 x), h(W_2 x), ... side by side.
    degree : int
        How many there are.

    Returns
    -------
    torch.Tensor
        (..., degree E), float32 at least, as products leave the range of half
        precision: the first factor, the product of the first two, and so on.

    Raises
    ------
    ValueError
        If the width is no multiple of the degree.

    Example
    -------
    >>> polynomial(torch.tensor([2.0, 3.0, 5.0]), 3).tolist()
    [2.0, 6.0, 30.0]
    """
    if degree < 1 or factors.shape[-1] % degree:
        raise ValueError(
            f"{degree} factors of one width are expected, got {factors.shape[-1]} "
            "channels"
        )
    factors = factors.to(torch.promote_types(factors.dtype, torch.float32))
    products = list(factors.chunk(degree, dim=-1))
    for index in range(1, degree):
        products[index] = products[index - 1] * products[index]
    return torch.cat(products, dim=-1)
