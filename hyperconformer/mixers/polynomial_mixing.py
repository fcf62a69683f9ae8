"""PoM: every frame selects from the mean of a polynomial of all frames.

PoM, https://arxiv.org/abs/2411.12663, and its use in speech encoders,
https://arxiv.org/abs/2603.00683. What is implemented is the equation

    PoM(X) = W_o [sigmoid(W_s X) o H(X)],
    H(X) = mean over frames of [h(W_1 X); h(W_1 X) o h(W_2 X); ...],

o the product of channels. What it leaves open (initial values, the chunked means, their
state) is this package's choice, and so are the default sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hyperconformer.mixers.means import MeansMixer
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.polynomial_mixing import polynomial
from hyperconformer.ops.summary_mixing import spread_over_frames


class PolynomialMixing(MeansMixer):
    """W_o [sigmoid(W_s x_t) o H], H the mean of a polynomial of the frames seen.

    The mean is over the utterance, in the causal form over the frames so far, in the
    chunked form over the frames up to the chunk's end.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Not used: the equation has no heads.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        If ``degree`` or ``width`` is below 1.

    Example
    -------
    >>> import torch
    >>> mixer = PolynomialMixing(16, 4, causal=True)
    >>> x = torch.randn(2, 6, 16)
    >>> whole, _ = mixer(x)
    >>> first, state = mixer(x[:, :4], state=mixer.init_state(2))
    >>> last, state = mixer(x[:, 4:], state=state)
    >>> torch.allclose(whole, torch.cat([first, last], dim=1), atol=1e-6)
    True
    """

    paper = "arXiv:2603.00683"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`PolynomialMixing`."""

        causal: bool = False
        """Whether frames see only frames up to themselves."""

        degree: int = 2
        """Degree k of the polynomial."""

        width: int | None = None
        """Channels of each monomial; None = ``d_model``."""

        activation: Callable[[], nn.Module] = nn.GELU
        """Class of the nonlinearity h."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        width = d_model if options.width is None else options.width
        if options.degree < 1 or width < 1:
            raise ValueError(
                f"degree and width must be >= 1, got {options.degree} and {width}"
            )
        self.causal = options.causal
        self.degree = options.degree
        self.summary_size = options.degree * width
        self.factors = Linear(d_model, self.summary_size)
        self.selection = Linear(d_model, self.summary_size)
        self.activation = options.activation()
        self.to_out = Linear(self.summary_size, d_model)

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
        means, state = self.means(
            polynomial(self.activation(self.factors(x)), self.degree),
            padding_mask=padding_mask,
            chunk=chunk,
            state=state,
        )
        means = spread_over_frames(means, x.shape[1], chunk=chunk, causal=self.causal)
        gates = self.selection(x).sigmoid()
        return self.to_out(gates * means.to(gates.dtype)), state
