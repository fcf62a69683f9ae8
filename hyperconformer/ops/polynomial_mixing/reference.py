"""Polynomial mixing as it is written, frame by frame, any dtype."""

import torch

from hyperconformer.ops.summary_mixing.reference import summary_mean_reference


def polynomial_mixing(factors, gates, **visible):
    """The gated polynomial of what each frame sees, before the last projection.

    Arguments
    ---------
    factors : list of torch.Tensor
        Of each degree (B, T, E): h(W_m x).
    gates : torch.Tensor
        (B, T, degree E): W_s x.
    **visible
        ``padding_mask``, ``chunk`` and ``causal`` of
        :func:`~hyperconformer.ops.summary_mixing.reference.summary_mean_reference`.

    Returns
    -------
    torch.Tensor
        (B, T, degree E): sigmoid(W_s x) o H(X).
    """
    monomials = [
        torch.stack(factors[: degree + 1]).prod(0) for degree in range(len(factors))
    ]
    context = summary_mean_reference(torch.cat(monomials, dim=-1), **visible)
    return context / (1 + torch.exp(-gates))
