"""Random operands of the operators that have Triton kernels.

The tests of the operators take theirs from here too. All are made on the CPU, where
they do not depend on the device that they are moved to.
"""

import torch

from hyperconformer.ops.hyperglu import LowRankMix
from hyperconformer.ops.hypermixing import Hypernet


def random_hypernet(heads, width, hidden, mixing, bias=True, dtype=torch.float64):
    """A hypernetwork whose outputs are about as large as its inputs.

    Arguments
    ---------
    heads, width, hidden, mixing : int
        H, d, e and k.
    bias : bool
        Whether it has biases.
    dtype : torch.dtype
        Of the weights, which require gradients.

    Returns
    -------
    Hypernet
    """

    def weight(*shape):
        return (torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5).requires_grad_()

    return Hypernet(
        weight(heads, hidden, width),
        weight(heads, hidden) if bias else None,
        weight(heads, mixing, hidden),
        weight(heads, mixing) if bias else None,
    )


def tail_mask(batch, length):
    """(B, T) padding mask: utterance b has b tokens less than the longest."""
    lengths = (length - torch.arange(batch)).clamp(min=1)
    return torch.arange(length)[None] >= lengths[:, None]


def ragged_mask(batch, length):
    """(B, T) padding mask: the utterances have from one token to all T."""
    lengths = torch.linspace(length, 1, batch).long()
    return torch.arange(length)[None] >= lengths[:, None]


def make_mix(batch, heads, frames, slots, rank, *, diag=True, shortcut=True):
    """A mixing of HyperGLU, float64."""
    U = torch.randn(heads, slots, rank).double() * 0.3
    Vt = torch.randn(heads, rank, slots).double() * 0.3
    d = torch.randn(heads, slots).double() * 0.3 if diag else None
    control = torch.rand(batch, heads, frames, rank).double()
    return LowRankMix(U, Vt, d, control, shortcut)


def make_case(
    kind="glu",
    frames=11,
    block_size=5,
    past=0,
    mix1=True,
    mix2=True,
    sizes=(2, 2, 3, 4),
    rank=3,
    **mix,
):
    """Arguments of :func:`hyperconformer.ops.hyperglu.hyperglu`, float64.

    Arguments
    ---------
    kind, block_size
        As the operator takes them.
    frames, past : int
        T and P.
    mix1, mix2 : bool
        Whether there are these mixings.
    sizes : tuple of int
        B, H, d and d_v.
    rank : int
        Of the mixings.
    **mix : bool
        The options of :func:`make_mix`.

    Returns
    -------
    dict
    """
    batch, heads, width, value_width = sizes
    score_sets = heads * (2 if kind == "glu" else 1)
    tensors = {
        "q": torch.randn(batch, score_sets, frames, width).double(),
        "k": torch.randn(batch, score_sets, past + frames, width).double(),
        "v": torch.randn(batch, heads, past + frames, value_width).double(),
    }
    shape = (frames, block_size, rank)
    return {
        **tensors,
        "kind": kind,
        "block_size": block_size,
        "mix1": make_mix(batch, score_sets, *shape, **mix) if mix1 else None,
        "mix2": make_mix(batch, heads, *shape, **mix) if mix2 else None,
    }


def leaves(case):
    """Every floating tensor of a case, made to require a gradient."""
    mixes = [t for name in ("mix1", "mix2") for t in (case[name] or ())[:4]]
    tensors = [case["q"], case["k"], case["v"], *mixes]
    return [t.requires_grad_() for t in tensors if t is not None]
