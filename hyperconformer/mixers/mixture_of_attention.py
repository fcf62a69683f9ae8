"""Mixture-of-attention: each expert attends between the few frames routed to it.

The idea is that of CoLT5's heavy branch (arXiv:2303.09752) with several experts:
coordinate descent chooses, for each expert, k queries and k' keys and values; the
expert is attention among them, so its cost does not depend on T, and choosing costs
O(T). Windowed local attention beside the experts serves the frames that no expert
took.

The published package (mixture-of-attention 0.0.25) differs in ways that are faults,
and that are not reproduced here: with several experts it gathers tokens from other
utterances of the batch and halves keys and values across experts; where an utterance
has no more frames than ``num_routed_queries``, so that none is routed, it drops the
local branch and takes the mean over the experts, whatever ``average_routed`` says
(here, as of routed frames, the sum); the non-causal rotary of the local branch is
shifted by a window; without a mask, non-causal local attention sees the zeros that fill
the last window as keys and values (here nothing past the end is seen); the choice among
equal weights is arbitrary, that among padded utterances depends on the padding; and its
autoregressive form sees the future (see :class:`MixtureOfAutoregressiveAttention`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.coordinate_descent import (
    Route,
    gather_tokens,
    route,
    route_causally,
)
from hyperconformer.ops.local_attention import local_attention, rotate_half
from hyperconformer.ops.summary_mixing import summary_mean


def at_least_float32(x):
    """Widen half precision to float32; leave float32 and float64 alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class CoordinateDescentRouter(nn.Module):
    """Scores tokens for each expert: s = x . r_e (CoLT5, arXiv:2303.09752).

    Arguments
    ---------
    dim : int
        Width D of the tokens.
    num_experts : int
        Number E of experts.
    pooled_dim : int, optional
        None: the routing tokens r_e are parameters. Otherwise they are a projection
        of a summary vector of this width (dynamic routing).

    Example
    -------
    >>> CoordinateDescentRouter(8, 2)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 1, 2, 5])
    """

    def __init__(self, dim, num_experts, pooled_dim=None):
        super().__init__()
        self.num_experts = num_experts
        # Published: N(0, 1), with which most weights saturate at D = 512 and the
        # choice is left to ties. This keeps the scores of normalised frames near 1.
        if pooled_dim is None:
            self.routing_token = nn.Parameter(
                torch.randn(num_experts, dim) / math.sqrt(dim)
            )
        else:
            self.to_routing_token = Linear(pooled_dim, num_experts * dim)
            nn.init.normal_(self.to_routing_token.bias, std=1 / math.sqrt(dim))

    def forward(self, x, pooled=None):
        """Score every token for every expert, in float32 at least.

        Arguments
        ---------
        x : torch.Tensor
            (B, N, D) tokens.
        pooled : torch.Tensor, optional
            (B, U, P) summaries, for dynamic routing: each scores all tokens.

        Returns
        -------
        torch.Tensor
            (B, U, E, N) scores; U = 1 without summaries.
        """
        # The descent divides scores by 0.03 and exponentiates: half precision is
        # too coarse for it.
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if pooled is None:
                tokens = self.routing_token.to(x.dtype)
                return torch.einsum("bnd,ed->ben", x, tokens).unsqueeze(1)
            layer = self.to_routing_token
            parameters = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
            tokens = F.linear(pooled.to(x.dtype), *parameters)
            tokens = tokens.unflatten(-1, (self.num_experts, -1))
            return torch.einsum("bnd,bued->buen", x, tokens)


class GroupedRMSNorm(nn.Module):
    """z / max(||z||, 1e-12) * sqrt(D) * gamma_e, with a gain for each expert.

    Arguments
    ---------
    dim : int
        Width D.
    num_experts : int
        Number E of experts.

    Example
    -------
    >>> GroupedRMSNorm(8, 2)(torch.randn(3, 2, 5, 8)).shape
    torch.Size([3, 2, 5, 8])
    """

    def __init__(self, dim, num_experts):
        super().__init__()
        self.scale = math.sqrt(dim)
        self.gamma = nn.Parameter(torch.ones(num_experts, dim, 1))

    def forward(self, x):
        """(B, E, N, D) to the same shape and type, in float32 at least between."""
        # 1e-12 is 0 in float16, and silence would be divided by it.
        normed = F.normalize(at_least_float32(x), dim=-1)
        return (normed * self.scale * self.gamma.transpose(1, 2)).to(x.dtype)


class ExpertAttention(nn.Module):
    """Multi-head attention of E experts at once, each with its own weights.

    Arguments
    ---------
    dim : int
        Width of the queries and the output.
    dim_context : int
        Width of the tokens that keys and values come from.
    num_experts : int
        Number E of experts.
    heads : int
        Heads of each expert.
    dim_head : int
        Width of a head.
    dropout : float
        Dropout of the attention weights.

    Example
    -------
    >>> attend = ExpertAttention(8, 8, num_experts=2, heads=2, dim_head=4)
    >>> x = torch.randn(3, 2, 5, 8)
    >>> ones = torch.ones(3, 2, 5)
    >>> attend(x, x, ones.bool(), value_weight=ones, output_weight=ones).shape
    torch.Size([3, 2, 5, 8])
    """

    def __init__(self, dim, dim_context, *, num_experts, heads, dim_head, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.num_experts = num_experts
        self.dropout = dropout
        inner = heads * dim_head
        self.norm = GroupedRMSNorm(dim, num_experts)
        self.context_norm = GroupedRMSNorm(dim_context, num_experts)
        # A key that is always visible, for experts to which nothing was routed.
        self.null_kv = nn.Parameter(torch.randn(2, num_experts, heads, 1, dim_head))
        self.to_q = self._linear_per_expert(dim, inner)
        self.to_kv = self._linear_per_expert(dim_context, 2 * inner)
        self.to_out = self._linear_per_expert(inner, dim)

    def _linear_per_expert(self, width_in, width_out):
        """E linear layers side by side, as one grouped pointwise convolution."""
        groups = self.num_experts
        return nn.Conv1d(
            groups * width_in, groups * width_out, 1, bias=False, groups=groups
        )

    def _apply_per_expert(self, layer, x):
        """(B, E, N, D) to (B, E, N, D') through a grouped pointwise convolution."""
        batch, experts, count, width = x.shape
        x = layer(x.transpose(2, 3).reshape(batch, experts * width, count))
        return x.view(batch, experts, -1, count).transpose(2, 3)

    def _split_heads(self, x):
        """(B, E, N, h d) to (B E, h, N, d)."""
        return x.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, context, context_keep, *, value_weight, output_weight):
        """Attend from each expert's queries to its keys.

        Arguments
        ---------
        x : torch.Tensor
            (B, E, M, D) the queries' tokens.
        context : torch.Tensor
            (B, E, N, D') the keys' and values' tokens.
        context_keep : torch.Tensor
            (B, E, N) bool, True = visible.
        value_weight : torch.Tensor
            (B, E, N) factors on the values.
        output_weight : torch.Tensor
            (B, E, M) factors on the output.

        Returns
        -------
        torch.Tensor
            (B, E, M, D).
        """
        batch = x.shape[0]
        q = self._apply_per_expert(self.to_q, self.norm(x))
        kv = self._apply_per_expert(self.to_kv, self.context_norm(context))
        k, v = kv.chunk(2, dim=-1)
        v = v * value_weight.unsqueeze(-1).to(v.dtype)
        q, k, v = (self._split_heads(t) for t in (q, k, v))
        null_k, null_v = self.null_kv.to(k.dtype).repeat(1, batch, 1, 1, 1)
        visible = F.pad(context_keep.flatten(0, 1), (1, 0), value=True)
        y = F.scaled_dot_product_attention(
            q,
            torch.cat([null_k, k], dim=2),
            torch.cat([null_v, v], dim=2),
            attn_mask=visible[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        y = y.transpose(1, 2).flatten(2).unflatten(0, (batch, self.num_experts))
        y = self._apply_per_expert(self.to_out, y)
        return y * output_weight.unsqueeze(-1).to(y.dtype)


class LocalMultiHeadAttention(nn.Module):
    """Pre-normalised multi-head attention within a window, with rotary positions.

    Arguments
    ---------
    dim : int
        Width of the frames.
    window_size : int
        Farthest frame seen: |i - j| <= window_size.
    heads : int
        Number of heads.
    dim_head : int
        Width of a head, even.
    causal : bool
        Whether frames see only frames up to themselves.

    Example
    -------
    >>> local = LocalMultiHeadAttention(8, window_size=2, heads=2, dim_head=4)
    >>> local(torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, dim, *, window_size, heads, dim_head, causal=False):
        super().__init__()
        self.window_size = window_size
        self.heads = heads
        self.causal = causal
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = Linear(heads * dim_head, dim, bias=False)

    def forward(self, x, keep):
        """Attend.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        keep : torch.Tensor
            (B, T) bool, True = a real frame.

        Returns
        -------
        torch.Tensor
            (B, T, D).
        """
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        positions = torch.arange(x.shape[1], device=x.device)
        y = local_attention(
            rotate_half(q, positions),
            rotate_half(k, positions),
            v,
            window=self.window_size,
            causal=self.causal,
            exact=True,
            padding_mask=~keep,
        )
        return self.to_out(y.transpose(1, 2).flatten(2))


class RoutedAttention(nn.Module):
    """What both forms have: routers, experts, local attention beside them.

    Arguments
    ---------
    dim : int
        Width D of the frames.
    dim_context : int
        Width of the tokens that keys and values come from.
    local_window : int or None
        Frames that local attention sees on each side; None = no local attention.
    causal : bool
        Whether local attention sees frames up to each frame only.
    num_routed_queries : int
        Queries that each expert takes at most, from 1.
    num_routed_key_values : int
        Keys and values that each expert takes at most, from 1.
    num_experts : int
        Number of experts.
    dim_head : int
        Width of a head.
    heads : int
        Heads of each expert and of the local attention.
    dropout : float
        Dropout of the experts' attention weights.
    average_routed : bool
        Whether each frame's sum is divided by the number of its terms: the experts
        and the local attention.
    dynamic_routing : bool
        Whether routing tokens are a projection of a mean frame instead of being
        parameters.
    straight_through : bool
        Whether routing weights read exactly 1 while their gradients are those of
        the descent, as published. False: they multiply values and outputs.

    Raises
    ------
    ValueError
        If a number is below 1.
    """

    def __init__(
        self,
        dim: int,
        dim_context: int,
        local_window: int | None,
        causal: bool,
        *,
        num_routed_queries: int,
        num_routed_key_values: int,
        num_experts: int = 2,
        dim_head: int = 64,
        heads: int = 8,
        dropout: float = 0.0,
        average_routed: bool = False,
        dynamic_routing: bool = False,
        straight_through: bool = True,
    ):
        super().__init__()
        check_at_least_one(
            num_routed_queries=num_routed_queries,
            num_routed_key_values=num_routed_key_values,
            num_experts=num_experts,
            dim_head=dim_head,
            heads=heads,
        )
        self.dim = dim
        self.dim_context = dim_context
        self.num_routed_queries = num_routed_queries
        self.num_routed_key_values = num_routed_key_values
        self.num_experts = num_experts
        self.average_routed = average_routed
        self.dynamic_routing = dynamic_routing
        self.straight_through = straight_through
        pooled_dim = dim if dynamic_routing else None
        self.query_router = CoordinateDescentRouter(dim, num_experts, pooled_dim)
        self.key_value_router = CoordinateDescentRouter(
            dim_context, num_experts, pooled_dim
        )
        sizes = {"heads": heads, "dim_head": dim_head}
        self.attn = ExpertAttention(
            dim, dim_context, num_experts=num_experts, dropout=dropout, **sizes
        )
        self.local_attn = None
        if local_window is not None:
            check_at_least_one(local_attn_window_size=local_window)
            self.local_attn = LocalMultiHeadAttention(
                dim, window_size=local_window, causal=causal, **sizes
            )

    def _attend(self, x, queries, tokens, key_values):
        """The experts' answers (B, E, K, D) to their routed queries."""
        return self.attn(
            gather_tokens(x, queries.index),
            tokens,
            key_values.keep,
            value_weight=key_values.weight,
            output_weight=queries.weight,
        )


class MixtureOfAttention(RoutedAttention):
    """Experts that attend between the frames routed to them (self or cross).

    Each utterance is routed by its own frames: where it has no more than
    ``num_routed_queries`` of them, every expert gets all. What the experts say of a
    frame is summed, also then (published: the mean, without the local branch);
    ``average_routed`` takes the mean. In a batch as alone. Dynamic routing takes the
    mean of the real query frames.

    Local attention sees real frames only (published: without a mask also the zeros that
    fill the last window).

    Arguments
    ---------
    dim : int
        Width D of the frames.
    dim_context : int, optional
        Width of the context for cross-attention; None = ``dim``.
    local_attn : bool
        Whether windowed local attention of all frames is added. Without it, frames
        that no expert took become a learned vector.
    local_attn_window_size : int, optional
        Its window; needed with ``local_attn``.
    **options
        As :class:`RoutedAttention`; ``num_routed_queries`` and
        ``num_routed_key_values`` are needed.

    Raises
    ------
    ValueError
        If a number is out of range, or the local window is missing.

    Example
    -------
    >>> attention = MixtureOfAttention(
    ...     16, num_routed_queries=4, num_routed_key_values=4, dim_head=4, heads=2
    ... )
    >>> attention(torch.randn(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        dim_context: int | None = None,
        local_attn: bool = False,
        local_attn_window_size: int | None = None,
        **options: Any,
    ):
        if local_attn and local_attn_window_size is None:
            raise ValueError("local_attn=True needs local_attn_window_size, got None")
        super().__init__(
            dim,
            dim if dim_context is None else dim_context,
            local_attn_window_size if local_attn else None,
            causal=False,
            **options,
        )
        if not local_attn:
            self.null_routed_token = nn.Parameter(torch.randn(1, 1, dim))

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        context : torch.Tensor, optional
            (B, N, D') where keys and values come from; None = ``x``.
        mask : torch.Tensor, optional
            (B, T) bool, **True = keep**, as published.
        context_mask : torch.Tensor, optional
            (B, N) bool, True = keep; of the context only.

        Returns
        -------
        torch.Tensor
            (B, T, D), 0 in masked frames.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        x, keep = clean_tokens("x", x, mask, self.dim)
        if context is None:
            if context_mask is not None:
                raise ValueError("context_mask was given without a context")
            if self.dim_context != self.dim:
                raise ValueError(
                    f"needs a context of width {self.dim_context}, got None"
                )
            context, context_keep = x, keep
        else:
            context, context_keep = clean_tokens(
                "context", context, context_mask, self.dim_context
            )
        pooled = None
        if self.dynamic_routing:
            pooled, _ = summary_mean(x, padding_mask=~keep)
        queries = route(
            self.query_router(x, pooled).squeeze(1),
            keep.unsqueeze(1),
            self.num_routed_queries,
            self.straight_through,
        )
        key_values = route(
            self.key_value_router(context, pooled).squeeze(1),
            context_keep.unsqueeze(1),
            self.num_routed_key_values,
            self.straight_through,
        )
        tokens = gather_tokens(context, key_values.index)
        y = self._attend(x, queries, tokens, key_values)
        return self._combine(y, queries, x, keep)

    def _combine(self, y, queries, x, keep):
        """Bring the experts' frames (B, E, K, D) back to their places (B, T, D)."""
        index = queries.index.flatten(1)
        y = y.flatten(1, 2)
        out = y.new_zeros(x.shape).scatter_add(1, index.unsqueeze(-1).expand_as(y), y)
        terms = queries.keep.new_zeros(x.shape[:2], dtype=out.dtype)
        terms = terms.scatter_add(1, index, queries.keep.flatten(1).to(out.dtype))
        terms = terms.unsqueeze(-1)
        if self.local_attn is None:
            out = torch.where(terms == 0, self.null_routed_token.to(out.dtype), out)
        else:
            out = out + self.local_attn(x, keep)
            terms = terms + 1
        if self.average_routed:
            out = out / terms.clamp(min=1)
        return out.masked_fill(~keep.unsqueeze(-1), 0.0)


class MixtureOfAutoregressiveAttention(RoutedAttention):
    """Causal mixture-of-attention over windows, beside causal local attention.

    The frames of window u query keys and values routed from windows 0 ... u-1;
    the first window has local attention alone. The published module picks the
    queries of a window by comparing all of its frames, so that a frame is dropped
    because a later one scores higher; it also lets the target mass of the
    routing, and whether the first window is averaged, depend on the total length.
    Here a frame is taken at the price set by the window before, first come first
    served (:func:`route_causally`), and nothing depends on what follows.
    Dynamic routing takes the mean of the windows before.

    Arguments
    ---------
    dim : int
        Width D of the frames.
    local_attn_window_size : int
        Frames that local attention looks back.
    routed_window_size : int, optional
        Frames in a window; None = ``local_attn_window_size``.
    query_routing : str
        "causal", or "window": queries compete within the whole window as published,
        and a frame then depends on the frames up to its window's end.
    max_past_windows : int, optional
        Windows that keys and values are routed from, from 1; None = all before, as
        published, which costs O(T^2 / window) scores.
    **options
        As :class:`RoutedAttention`, counts being those of a window;
        ``num_routed_queries`` and ``num_routed_key_values`` are needed.

    Raises
    ------
    ValueError
        If an option is out of range.

    Example
    -------
    >>> attention = MixtureOfAutoregressiveAttention(
    ...     16, num_routed_queries=2, num_routed_key_values=4,
    ...     local_attn_window_size=4, dim_head=4, heads=2,
    ... )
    >>> attention(torch.randn(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        dim: int,
        *,
        local_attn_window_size: int,
        routed_window_size: int | None = None,
        query_routing: str = "causal",
        max_past_windows: int | None = None,
        **options: Any,
    ):
        if routed_window_size is None:
            routed_window_size = local_attn_window_size
        check_at_least_one(routed_window_size=routed_window_size)
        if max_past_windows is not None:
            check_at_least_one(max_past_windows=max_past_windows)
        if query_routing not in ("causal", "window"):
            raise ValueError(
                f"query_routing must be 'causal' or 'window', got {query_routing!r}"
            )
        super().__init__(dim, dim, local_attn_window_size, causal=True, **options)
        self.routed_window_size = routed_window_size
        self.query_routing = query_routing
        self.max_past_windows = max_past_windows
        self.null_tokens = nn.Parameter(torch.randn(self.num_experts, dim))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mix.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        mask : torch.Tensor, optional
            (B, T) bool, **True = keep**.

        Returns
        -------
        torch.Tensor
            (B, T, D), 0 in masked frames.

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        x, keep = clean_tokens("x", x, mask, self.dim)
        assert self.local_attn is not None
        out = self.local_attn(x, keep)
        window = self.routed_window_size
        if x.shape[1] > window:
            # The experts have nothing to say of the first window, which therefore
            # reads the same whatever follows.
            routed = self._experts(x, keep)
            later = out[:, window:] + routed
            if self.average_routed:
                later = later / (self.num_experts + 1)
            out = torch.cat([out[:, :window], later], dim=1)
        return out.masked_fill(~keep.unsqueeze(-1), 0.0)

    def _experts(self, x, keep):
        """What the experts say of windows 1, 2, ...: (B, T - window, D)."""
        batch, num_frames, dim = x.shape
        window = self.routed_window_size
        missing = -num_frames % window
        x = F.pad(x, (0, 0, 0, missing))
        keep = F.pad(keep, (0, missing))
        context, context_keep = x[:, :-window], keep[:, :-window]
        num_windows = context.shape[1] // window
        # From here on, row u = 0, 1, ... is window u + 1. Of the context, padded in
        # front, it sees the ``reach`` frames from frame u * window on.
        reach = num_windows
        if self.max_past_windows is not None:
            reach = min(reach, self.max_past_windows)
        reach = reach * window
        start = torch.arange(num_windows, device=x.device)[:, None] * window
        seen = start + torch.arange(reach, device=x.device)
        pooled = None
        if self.dynamic_routing:
            rule = ChunkRule(window, left_chunks=reach // window - 1)
            pooled, _ = summary_mean(context, padding_mask=~context_keep, chunk=rule)
        padded = F.pad(context, (0, 0, reach - window, 0))
        padded_keep = F.pad(context_keep, (reach - window, 0))
        scores = self.key_value_router(padded, pooled)
        scores = scores.expand(-1, num_windows, -1, -1).gather(
            -1, seen[None, :, None].expand(batch, -1, self.num_experts, -1)
        )
        key_values = route(
            scores,
            padded_keep[:, seen].unsqueeze(2),
            self.num_routed_key_values,
            self.straight_through,
        )
        # The context is not repeated for every row: that would be O(T reach D).
        index = key_values.index + start.unsqueeze(-1)
        keys = gather_tokens(padded, index.flatten(1, 2))
        key_values = Route(*(part.flatten(0, 1) for part in key_values))

        windows = x[:, window:].reshape(batch * num_windows, window, dim)
        windows_keep = keep[:, window:].reshape(-1, 1, window)
        queries = self._route_queries(
            context.reshape(windows.shape),
            context_keep.reshape(windows_keep.shape),
            windows,
            windows_keep,
            None if pooled is None else pooled.flatten(0, 1).unsqueeze(1),
        )
        tokens = keys.reshape(*key_values.index.shape, dim)
        y = self._attend(windows, queries, tokens, key_values)
        y = self._place(y, queries, window)
        return y.view(batch, num_windows * window, dim)[:, : num_frames - window]

    def _route_queries(self, before, before_keep, windows, windows_keep, pooled):
        """Which frames of each window query: a :class:`Route` of (rows, E, K)."""
        scores = self.query_router(windows, pooled).squeeze(1)
        count = self.num_routed_queries
        if self.query_routing == "window":
            window = self.routed_window_size
            return route(scores, windows_keep, count, self.straight_through, window)
        return route_causally(
            self.query_router(before, pooled).squeeze(1),
            before_keep,
            scores,
            windows_keep,
            count,
            self.straight_through,
        )

    def _place(self, y, queries, window):
        """Sum over experts of their frames, or null tokens: (rows, window, D)."""
        rows, experts, _, dim = y.shape
        index = queries.index.unsqueeze(-1).expand_as(y)
        placed = y.new_zeros(rows, experts, window, dim).scatter(2, index, y)
        taken = queries.keep.new_zeros(rows, experts, window)
        taken = taken.scatter(2, queries.index, queries.keep)
        null = self.null_tokens.to(y.dtype)[None, :, None]
        return torch.where(taken.unsqueeze(-1), placed, null).sum(1)


def clean_tokens(name, x, mask, dim):
    """Check tokens and their mask (True = keep), and zero what is masked.

    Arguments
    ---------
    name : str
        What to call them in errors.
    x : torch.Tensor
        (B, N, dim).
    mask : torch.Tensor or None
        (B, N) bool, or None = all kept.
    dim : int
        Expected width.

    Returns
    -------
    x : torch.Tensor
        (B, N, dim), 0 where masked.
    keep : torch.Tensor
        (B, N) bool.

    Raises
    ------
    ValueError
        If a shape or dtype is not as expected.
    """
    if x.dim() != 3 or x.shape[-1] != dim or x.shape[1] == 0:
        raise ValueError(
            f"{name} must have shape (B, N, {dim}) with N >= 1, got {tuple(x.shape)}"
        )
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise ValueError(
            f"the mask of {name} must be bool of shape {tuple(x.shape[:2])} "
            f"(True = keep), got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return x.masked_fill(~mask.unsqueeze(-1), 0.0), mask


def check_at_least_one(**numbers):
    """Refuse counts below 1.

    Arguments
    ---------
    **numbers : int
        Names and values.

    Raises
    ------
    ValueError
        If a value is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be >= 1, got {number}")


class MixtureOfAttentionMixer(TokenMixer):
    """Mixture-of-attention as a token mixer of the encoder.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Heads of each expert and of the local attention.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        If options do not fit together.

    Example
    -------
    >>> mixer = MixtureOfAttentionMixer(16, 2, num_routed_queries=4)
    >>> y, _ = mixer(torch.randn(2, 9, 16))
    >>> y.shape
    torch.Size([2, 9, 16])
    """

    cross = "MixtureOfAttention"
    paper = "arXiv:2303.09752"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`MixtureOfAttentionMixer`."""

        causal: bool = False
        """Whether to use :class:`MixtureOfAutoregressiveAttention`, whose frames see
        only frames up to themselves."""

        num_experts: int = 2
        """Number of experts."""

        num_routed_queries: int = 32
        """Queries that each expert takes (causal: in each window)."""

        num_routed_key_values: int = 32
        """Keys and values that each expert takes (causal: for each window)."""

        dim_head: int | None = None
        """Width of a head; None = ``d_model // num_heads``."""

        local_attn: bool = True
        """Whether local attention stands beside the experts; the causal form needs
        it."""

        local_attn_window_size: int = 32
        """Frames that local attention sees on each side (causal: before)."""

        routed_window_size: int | None = None
        """Frames in a routing window of the causal form; None = four local windows."""

        max_past_windows: int | None = 16
        """Windows before the current one that the causal form routes keys and values
        from; None = all, at a cost of O(T^2 / window) scores."""

        average_routed: bool = False
        """Whether each frame's sum is divided by the number of its terms."""

        dynamic_routing: bool = False
        """Whether routing tokens are a projection of the mean frame."""

        straight_through: bool = True
        """Whether routing weights read exactly 1 while gradients see the real ones."""

        dropout: float = 0.0
        """Dropout of the experts' attention weights."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        self.causal = options.causal
        # Experts are blind to order; the rotary of the local branch is not.
        self.needs_position = not options.local_attn
        self.quadratic = options.causal and options.max_past_windows is None
        dim_head = options.dim_head
        if dim_head is None:
            if d_model % num_heads:
                raise ValueError(
                    f"d_model must be a multiple of num_heads, or dim_head be given; "
                    f"got d_model={d_model}, num_heads={num_heads}"
                )
            dim_head = d_model // num_heads
        shared: dict[str, Any] = {
            "num_experts": options.num_experts,
            "num_routed_queries": options.num_routed_queries,
            "num_routed_key_values": options.num_routed_key_values,
            "local_attn_window_size": options.local_attn_window_size,
            "heads": num_heads,
            "dim_head": dim_head,
            "average_routed": options.average_routed,
            "dynamic_routing": options.dynamic_routing,
            "straight_through": options.straight_through,
            "dropout": options.dropout,
        }
        routed_window_size = options.routed_window_size
        if options.causal:
            if not options.local_attn:
                raise ValueError("causal=True needs local_attn=True, got False")
            if routed_window_size is None:
                routed_window_size = 4 * options.local_attn_window_size
            self.attention: RoutedAttention = MixtureOfAutoregressiveAttention(
                d_model,
                routed_window_size=routed_window_size,
                max_past_windows=options.max_past_windows,
                **shared,
            )
        else:
            if routed_window_size is not None:
                raise ValueError(
                    "routed_window_size belongs to causal=True, "
                    f"got {routed_window_size} with causal=False"
                )
            self.attention = MixtureOfAttention(
                d_model, local_attn=options.local_attn, **shared
            )

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix; see :class:`~hyperconformer.mixers.base.TokenMixer`.

        A chunk rule and a state are refused: routing reads all windows before.
        """
        self.check_inputs(x, padding_mask, chunk, state)
        keep = None if padding_mask is None else ~padding_mask
        return self.attention(x, mask=keep), None
