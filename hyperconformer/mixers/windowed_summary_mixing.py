"""Windowed SummaryMixing: SummaryMixing with a mean over each frame's neighbours too.

Windowed SummaryMixing, https://arxiv.org/abs/2602.09043. What is implemented is

    h_t = c(f(x_t), mean over all t' of s(x_t'), mean over |t' - t| <= k of s(x_t')),

with f, s and c as in :mod:`.summary_mixing`. Only the paper's abstract and a public
summary of it were read. That both means are of the same s, the default window, the
causal and chunked windows and their state are this package's choice.
"""

from dataclasses import dataclass
from typing import Any

from hyperconformer.mixers.summary_mixing import SummaryMixing
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.summary_mixing import init_past_window, window_mean


class WindowedSummaryMixing(SummaryMixing):
    """h_t = c(f(x_t), mean of s(x_t'), mean of s(x_t') near t), arXiv:2602.09043.

    A window holds the neighbours that the frame may see: in the causal form none after
    it, in the chunked form none after its chunk.

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
        If a size is no multiple of ``num_heads``, or ``window_radius`` is below 1.

    Example
    -------
    >>> import torch
    >>> mixer = WindowedSummaryMixing(16, 4, causal=True, window_radius=2)
    >>> x = torch.randn(2, 6, 16)
    >>> whole, _ = mixer(x)
    >>> first, state = mixer(x[:, :4], state=mixer.init_state(2))
    >>> last, state = mixer(x[:, 4:], state=state)
    >>> torch.allclose(whole, torch.cat([first, last], dim=1), atol=1e-6)
    True
    """

    paper = "arXiv:2602.09043"
    cost = "O(T x window_radius)"

    @dataclass(kw_only=True)
    class Options(SummaryMixing.Options):
        """The options of :class:`WindowedSummaryMixing`."""

        window_radius: int = 8
        """Frames k to each side of a frame that its window holds."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        options = self.Options(**given)
        if options.window_radius < 1:
            raise ValueError(
                f"window_radius must be at least 1, got {options.window_radius}"
            )
        super().__init__(d_model, num_heads, **given)
        self.window_radius = options.window_radius
        self.combine_window = Linear(self.summary_size, d_model, bias=False)

    def _combine_means(self, summaries, padding_mask, chunk, state):
        combined, after = super()._combine_means(summaries, padding_mask, chunk, state)
        windows, past = window_mean(
            summaries,
            self.window_radius,
            padding_mask=padding_mask,
            chunk=chunk,
            causal=self.causal,
            past=None if state is None else state["window"],
        )
        if state is not None:
            after["window"] = past.to(state["window"].dtype)
        return combined + self.combine_window(windows.to(summaries.dtype)), after

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """Nothing seen yet; see :class:`~hyperconformer.mixers.base.TokenMixer`.

        Returns
        -------
        dict of str to torch.Tensor
            That of :class:`~hyperconformer.mixers.means.MeansMixer`, and ``window``
            (B, ``window_radius``, summary_size + 1): the last summaries, and 1 for
            each that is a frame's.
        """
        state = super().init_state(batch_size, chunk=chunk, device=device, dtype=dtype)
        window = init_past_window(batch_size, self.summary_size, self.window_radius)
        return {**state, "window": window.to(state["sums"])}
