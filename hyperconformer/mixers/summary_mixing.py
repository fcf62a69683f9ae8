"""SummaryMixing: every frame is combined with the mean over the utterance.

SummaryMixing, https://arxiv.org/abs/2307.07421. What is implemented are the paper's two
equations,

    s_mean = (1/T) sum_t s(x_t),    h_t = c(f(x_t), s_mean),

with f, s and c each one linear layer and GELU, f and s with a layer of its own for each
head, c on both side by side. Its code was never read. What the equations leave open
(initial values, the causal and chunked means, their state) is this package's choice,
and so is ``local_size=0``, h_t = c(s_mean): it claims to be no published variant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hyperconformer.mixers.means import MeansMixer
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.summary_mixing import spread_over_frames


class HeadwiseLinear(nn.Module):
    """A linear layer for each head, on that head's slice of the channels.

    Arguments
    ---------
    input_size : int
        Channels in, a multiple of ``num_heads``.
    output_size : int
        Channels out, a multiple of ``num_heads``.
    num_heads : int
        Number of heads.

    Raises
    ------
    ValueError
        If a size is no multiple of the number of heads.

    Example
    -------
    >>> HeadwiseLinear(8, 6, 2)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 6])
    """

    def __init__(self, input_size, output_size, num_heads):
        super().__init__()
        for size in (input_size, output_size):
            if size < 1 or size % num_heads:
                raise ValueError(
                    f"sizes must be positive multiples of num_heads={num_heads}, "
                    f"got {size}"
                )
        self.num_heads = num_heads
        bound = 1 / math.sqrt(input_size // num_heads)
        shape = (num_heads, output_size // num_heads, input_size // num_heads)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(output_size).uniform_(-bound, bound))

    def forward(self, x):
        """(B, T, input_size) to (B, T, output_size)."""
        x = x.unflatten(-1, (self.num_heads, -1))
        y = torch.einsum("bthi,hoi->btho", x, self.weight).flatten(2)
        return y + self.bias.to(y.dtype)


class SummaryMixing(MeansMixer):
    """h_t = c(f(x_t), (1/T) sum_t' s(x_t')), arXiv:2307.07421.

    f, s and c are each a linear layer followed by GELU; those of f and s are
    per-head. The causal form replaces the mean over the utterance by that over
    the frames so far, the chunked form by that over the frames up to the chunk's end.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Slices of the channels that f and s treat apart.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        If a size is no multiple of ``num_heads``.

    Example
    -------
    >>> mixer = SummaryMixing(16, 4, causal=True)
    >>> x = torch.randn(2, 6, 16)
    >>> whole, _ = mixer(x)
    >>> first, state = mixer(x[:, :4], state=mixer.init_state(2))
    >>> last, state = mixer(x[:, 4:], state=state)
    >>> torch.allclose(whole, torch.cat([first, last], dim=1), atol=1e-6)
    True
    """

    paper = "arXiv:2307.07421"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`SummaryMixing`."""

        causal: bool = False
        """Whether frames see only frames up to themselves."""

        local_size: int | None = None
        """Width of f(x_t), a multiple of ``num_heads``; None = ``d_model``. 0 leaves f
        out, h_t = c(mean), for a layer with a local branch of its own."""

        summary_size: int | None = None
        """Width of s(x_t), a multiple of ``num_heads``; None = ``d_model``."""

        activation: Callable[[], nn.Module] = nn.GELU
        """Class of the nonlinearity."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        self.causal = options.causal
        local_size, summary_size = options.local_size, options.summary_size
        local_size = d_model if local_size is None else local_size
        self.summary_size = d_model if summary_size is None else summary_size
        self.summary = HeadwiseLinear(d_model, self.summary_size, num_heads)
        # The combiner's matrix in two blocks: the summary's is applied once to each
        # mean, not once to each frame.
        self.combine_summary = Linear(self.summary_size, d_model)
        self.local = None
        if local_size != 0:
            self.local = HeadwiseLinear(d_model, local_size, num_heads)
            self.combine_local = Linear(local_size, d_model, bias=False)
        self.activation = options.activation()

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix; see :class:`~hyperconformer.mixers.base.TokenMixer`.

        Raises
        ------
        ValueError
            With a state, if the mixer is neither causal nor given a chunk rule, or the
            state was made for another rule.
        """
        self.check_inputs(x, padding_mask, chunk, state)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        combined, state = self._combine_means(
            self.activation(self.summary(x)), padding_mask, chunk, state
        )
        if self.local is not None:
            combined = combined + self.combine_local(self.activation(self.local(x)))
        return self.activation(combined).expand(-1, x.shape[1], -1), state

    def _combine_means(self, summaries, padding_mask, chunk, state):
        """The combiner's sum over the means, (B, T or 1, D), and the new state."""
        means, state = self.means(
            summaries, padding_mask=padding_mask, chunk=chunk, state=state
        )
        combined = spread_over_frames(
            self.combine_summary(means.to(summaries.dtype)),
            summaries.shape[1],
            chunk=chunk,
            causal=self.causal,
        )
        return combined, state
