"""Gated DeltaNet: a memory that each frame decays, corrects and reads.

Gated Delta Networks, https://arxiv.org/abs/2412.06464; what the paper leaves open
(initial decays, the norms' floors, the order of norm and gate) is as in the package
flash-linear-attention. The form that sees both directions is this package's choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.core.masks import last_frames
from hyperconformer.mixers.base import (
    TokenMixer,
    check_right_padding,
    frames_of_step,
)
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.gated_delta_rule import gated_delta_rule

_UNIT_EPS, _NORM_EPS = 1e-6, 1e-5


class DeltaMemory(nn.Module):
    """Short convolutions, gates and the gated delta rule, in one direction of time.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Number of heads H.
    key_width, value_width : int
        Widths of a head.
    kernel_size : int
        Taps K of the convolutions.
    negative_eigenvalues : bool
        Whether the writing strength goes to 2.
    """

    def __init__(
        self,
        d_model,
        num_heads,
        key_width,
        value_width,
        kernel_size,
        negative_eigenvalues,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.widths = [num_heads * x for x in (key_width, key_width, value_width)]
        self.max_strength = 2.0 if negative_eigenvalues else 1.0
        bound = kernel_size**-0.5
        taps = torch.empty(sum(self.widths), kernel_size).uniform_(-bound, bound)
        self.taps = nn.Parameter(taps)
        self.decay = Linear(d_model, num_heads, bias=False)
        self.strength = Linear(d_model, num_heads, bias=False)
        # As in Mamba2: rates from 0 to 16, steps from 0.001 to 0.1.
        self.log_rate = nn.Parameter(torch.empty(num_heads).uniform_(1e-3, 16).log())
        step = torch.empty(num_heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.step_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))

    def forward(self, x, projected, padding_mask, recent, memory):
        """Write and read.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        projected : torch.Tensor
            (B, T, C) queries, keys and values of every head, side by side.
        padding_mask : torch.Tensor or None
            (B, T) bool, True = padding, where ``projected`` is 0.
        recent : torch.Tensor
            (B, K - 1, C) ``projected`` of the frames before.
        memory : torch.Tensor or None
            (B, H, d, e) what they have left.

        Returns
        -------
        out : torch.Tensor
            (B, T, H, e), float32 or float64.
        memory : torch.Tensor
            (B, H, d, e).
        history : torch.Tensor
            (B, K - 1 + T, C), of which the next step needs the last real rows.
        """
        history = torch.cat([recent, projected], dim=1)
        kernel_size = self.taps.shape[1]
        taps = self.taps.to(history.dtype)
        # A few shifted products: faster here than a depthwise convolution.
        mixed = sum(
            history[:, tap : tap + x.shape[1]] * taps[:, tap]
            for tap in range(kernel_size)
        )
        heads = F.silu(mixed).split(self.widths, dim=-1)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in heads)
        step = F.softplus(self.decay(x).to(v.dtype) + self.step_bias.to(v.dtype))
        log_decay = -self.log_rate.to(v.dtype).exp() * step
        strength = self.max_strength * self.strength(x).to(v.dtype).sigmoid()
        if padding_mask is not None:
            hidden = padding_mask.unsqueeze(-1)
            log_decay, strength = (
                y.masked_fill(hidden, 0.0) for y in (log_decay, strength)
            )
        gates = (y.transpose(1, 2) for y in (log_decay, strength))
        out, memory = gated_delta_rule(_unit(q), _unit(k), v, *gates, memory=memory)
        return out.transpose(1, 2), memory, history


class GatedDeltaNet(TokenMixer):
    """Gated DeltaNet, arXiv:2412.06464, figure 1: S_t = a_t (I - b_t k_t k_t') S_{t-1}
    + b_t k_t v_t', o_t = S_t' q_t, normed, gated and projected.

    Queries, keys and values pass a short causal convolution and SiLU; queries and keys
    have norm 1. The causal form streams in constant memory. The other form adds what a
    second memory reads that runs backwards from the end of each utterance; both share
    the projections.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Number of heads H.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        If ``num_heads`` does not divide ``d_model``, or an option is out of range.

    Example
    -------
    >>> mixer = GatedDeltaNet(16, 2, causal=True)
    >>> x = torch.randn(2, 6, 16)
    >>> whole, _ = mixer(x)
    >>> first, state = mixer(x[:, :4], state=mixer.init_state(2))
    >>> last, state = mixer(x[:, 4:], state=state)
    >>> torch.allclose(whole, torch.cat([first, last], dim=1), atol=1e-6)
    True
    """

    paper = "arXiv:2412.06464"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`GatedDeltaNet`."""

        causal: bool = False
        """Whether frames see only frames up to themselves."""

        expand_v: int = 1
        """Width of a head's values, in widths of its keys D / H."""

        conv_size: int = 4
        """Taps of the convolutions of queries, keys and values; 1 = none."""

        allow_neg_eigval: bool = False
        """Whether the writing strength b_t goes to 2 instead of 1, so that a frame may
        turn what the memory holds into its opposite."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        if d_model % num_heads:
            raise ValueError(
                f"num_heads must divide d_model = {d_model}, got {num_heads}"
            )
        for name in ("expand_v", "conv_size"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(options, name)}")
        self.causal = self.streamable = self.chunkable = options.causal
        self.conv_size = options.conv_size
        width = d_model // num_heads
        values = options.expand_v * d_model
        self.to_qkv = Linear(d_model, 2 * d_model + values, bias=False)
        sizes = width, options.expand_v * width, options.conv_size
        kind = d_model, num_heads, *sizes, options.allow_neg_eigval
        self.forwards = DeltaMemory(*kind)
        self.backwards = None if options.causal else DeltaMemory(*kind)
        self.norm_weight = nn.Parameter(torch.ones(options.expand_v * width))
        self.gate = Linear(d_model, values, bias=False)
        self.to_out = Linear(values, d_model, bias=False)

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix; see :class:`~hyperconformer.mixers.base.TokenMixer`."""
        self.check_inputs(x, padding_mask, chunk, state)
        new = None
        if state is not None:
            new = frames_of_step(x, padding_mask, state["frames_seen"])
        elif padding_mask is not None:
            # Padding before real frames would be time to the convolutions.
            check_right_padding(padding_mask)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        projected = self.to_qkv(x)
        # Here on at least in float32: errors of a memory add up over frames.
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        if state is None:
            recent, memory = self._nothing(projected), None
        else:
            recent, memory = state["recent"].to(projected.dtype), state["memory"]
        out, memory, history = self.forwards(x, projected, padding_mask, recent, memory)
        if self.backwards is not None:
            mirrored = [
                None if y is None else y.flip(1) for y in (x, projected, padding_mask)
            ]
            reverse, _, _ = self.backwards(*mirrored, recent, None)
            out = out + reverse.flip(1)
        out = out * (out.square().mean(-1, keepdim=True) + _NORM_EPS).rsqrt()
        out = (out * self.norm_weight.to(out.dtype)).flatten(2)
        gate = self.gate(x)
        y = self.to_out(out.to(gate.dtype) * F.silu(gate))
        if state is None:
            return y, None
        frames = None if padding_mask is None else new
        recent = last_frames(history, frames, self.conv_size - 1)
        return y, {
            "frames_seen": state["frames_seen"] + new,
            "recent": recent.to(state["recent"].dtype),
            "memory": memory.to(state["memory"].dtype),
        }

    def check_inputs(self, x, padding_mask=None, chunk=None, state=None):
        """Refuse what this mixer cannot honour, see :class:`TokenMixer`."""
        super().check_inputs(x, padding_mask, chunk, state)
        if chunk is not None and chunk.left_chunks is not None:
            raise ValueError(_all_the_past(chunk))

    def unsupported_reason(self, chunk=None):
        """See :meth:`TokenMixer.unsupported_reason`."""
        if not self.causal:
            return "GatedDeltaNet cannot stream: it streams only with causal=True"
        bounded = chunk is not None and chunk.left_chunks is not None
        return _all_the_past(chunk) if bounded else None

    def step_unit(self, chunk=None):
        """See :meth:`TokenMixer.step_unit`."""
        return 1

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """An empty memory; see :class:`~hyperconformer.mixers.base.TokenMixer`.

        Returns
        -------
        dict of str to torch.Tensor
            ``frames_seen`` (B,) int64; float32 at least, ``recent``
            (B, conv_size - 1, C) queries, keys and values before their convolution, and
            ``memory`` (B, H, d, e).
        """
        reason = self.unsupported_reason(chunk)
        if reason:
            raise ValueError(reason)
        weight = self.to_qkv.weight
        device = weight.device if device is None else device
        dtype = torch.promote_types(
            weight.dtype if dtype is None else dtype, torch.float32
        )
        heads = self.forwards.num_heads
        widths = [size // heads for size in self.forwards.widths[1:]]
        like = {"device": device, "dtype": dtype}
        return {
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "recent": torch.zeros(batch_size, self.conv_size - 1, len(weight), **like),
            "memory": torch.zeros(batch_size, heads, *widths, **like),
        }

    def _nothing(self, projected):
        """Zeros in the place of the frames before the first."""
        shape = projected.shape[0], self.conv_size - 1, projected.shape[2]
        return projected.new_zeros(shape)


def _unit(x):
    """x (..., d) with norm 1."""
    return x * (x.square().sum(-1, keepdim=True) + _UNIT_EPS).rsqrt()


def _all_the_past(chunk):
    return (
        "GatedDeltaNet remembers all the past: it cannot honour a chunk rule with a "
        f"bounded left context: {chunk}"
    )
