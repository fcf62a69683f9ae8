"""Linear attention, with heads of local attention beside it.

Efficient Attention, https://arxiv.org/abs/1812.01243 (non-causal); Transformers are
RNNs, https://arxiv.org/abs/2006.16236 (causal); one head of keys and values: Fast
Transformer Decoding, https://arxiv.org/abs/1911.02150. The parameters bear the names
of the PyPI package linear-attention-transformer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hyperconformer.core.masks import check_padding_mask
from hyperconformer.mixers.base import TokenMixer, frames_of_step
from hyperconformer.nn.linear import Linear
from hyperconformer.ops import linear_attention as linear_ops
from hyperconformer.ops import local_attention as local_ops


class LinearAttention(TokenMixer):
    """Multi-head linear attention; the first heads may attend locally instead.

    A causal mixer streams. A non-causal one honours every chunk rule; a causal one
    the rules that do not bound the left context, or any rule if all heads are local.

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
        If an option is out of range.

    Example
    -------
    >>> mixer = LinearAttention(16, 4, causal=True, n_local_attn_heads=1)
    >>> y, state = mixer(torch.randn(2, 9, 16), state=mixer.init_state(2))
    >>> y.shape
    torch.Size([2, 9, 16])
    """

    chunkable = True
    needs_position = True
    cross = "LinearAttention.attend"
    paper = "arXiv:1812.01243, arXiv:2006.16236"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`LinearAttention`."""

        causal: bool = False
        """Whether a frame sees nothing after itself."""

        blindspot_size: int = 1
        """In causal heads, frames in a bucket: a frame sees the whole buckets before
        its own. With 1 it sees every frame up to itself."""

        n_local_attn_heads: int = 0
        """How many of the heads attend locally."""

        local_attn_window_size: int = 128
        """Frames in a local window; a frame sees its own and the neighbouring
        windows."""

        one_kv_head: bool = False
        """Whether all heads share one head of keys and values."""

        dim_head: int | None = None
        """Width of a head; None means D / H."""

        dropout: float = 0.0
        """Dropout rate of the output."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        if options.dim_head is None and d_model % num_heads:
            raise ValueError(
                f"num_heads must divide d_model = {d_model} unless dim_head is given, "
                f"got {num_heads}"
            )
        if not 0 <= options.n_local_attn_heads <= num_heads:
            raise ValueError(
                f"n_local_attn_heads must be between 0 and {num_heads} heads, "
                f"got {options.n_local_attn_heads}"
            )
        blindspot, window = options.blindspot_size, options.local_attn_window_size
        if blindspot < 1 or window < 1:
            raise ValueError(
                "blindspot_size and local_attn_window_size must be >= 1, "
                f"got {blindspot} and {window}"
            )
        self.causal = self.streamable = options.causal
        self.num_heads = num_heads
        self.dim_head = options.dim_head or d_model // num_heads
        self.num_kv_heads = 1 if options.one_kv_head else num_heads
        self.blindspot_size = blindspot
        self.num_local = options.n_local_attn_heads
        self.window = window
        inner, inner_kv = (h * self.dim_head for h in (num_heads, self.num_kv_heads))
        self.to_q = Linear(d_model, inner, bias=False)
        self.to_k = Linear(d_model, inner_kv, bias=False)
        self.to_v = Linear(d_model, inner_kv, bias=False)
        self.to_out = Linear(inner, d_model)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix information across frames; see :class:`TokenMixer`."""
        self.check_inputs(x, padding_mask, chunk, state)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        if state is None:
            y = self.attend(x, key_padding_mask=padding_mask, chunk=chunk)
            return y, None
        return self._step(x, padding_mask, state)

    def check_inputs(self, x, padding_mask=None, chunk=None, state=None):
        """Refuse what this mixer cannot honour, see :class:`TokenMixer`."""
        super().check_inputs(x, padding_mask, chunk, state)
        sums_all_past = self.num_local < self.num_heads
        if self.causal and _is_bounded(chunk) and sums_all_past:
            raise ValueError(_all_the_past(chunk))

    def unsupported_reason(self, chunk=None):
        """See :meth:`TokenMixer.unsupported_reason`."""
        if not self.causal:
            return "LinearAttention cannot stream: it streams only with causal=True"
        return _all_the_past(chunk) if _is_bounded(chunk) else None

    def step_unit(self, chunk=None):
        """See :meth:`TokenMixer.step_unit`."""
        return 1

    def attend(
        self, x, *, context=None, key_padding_mask=None, rotary=None, chunk=None
    ):
        """Attend to the frames themselves, or to another sequence.

        Unlike in ``forward``, queries of padded frames are computed as all others.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) queries' frames.
        context : torch.Tensor, optional
            (B, N, D) keys' and values' frames; None means ``x``. Only a non-causal
            mixer without local heads takes one.
        key_padding_mask : torch.Tensor, optional
            (B, N) bool, True = padding.
        rotary : torch.Tensor, optional
            (1, T, dim_head) from :func:`rotary_codes`, applied to queries and keys.
        chunk : hyperconformer.core.masks.ChunkRule, optional
            How far each frame may see.

        Returns
        -------
        torch.Tensor
            (B, T, D).

        Raises
        ------
        ValueError
            If a context is given to a mixer, or with rotary codes or a chunk rule, that
            cannot take it, or a mask does not fit.
        """
        if context is not None:
            self._check_context(rotary, chunk)
        source = x if context is None else context
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, source)
            if context is not None:
                source = source.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
        local, distant = self._project(x, source, rotary)
        heads = []
        if self.num_local:
            heads.append(
                local_ops.local_attention(
                    *local,
                    window=self.window,
                    causal=self.causal,
                    padding_mask=key_padding_mask,
                    chunk=chunk,
                )
            )
        if self.num_local < self.num_heads and self.causal:
            heads.append(
                linear_ops.causal_linear_attention(
                    *distant,
                    blindspot=self.blindspot_size,
                    key_padding_mask=key_padding_mask,
                )
            )
        elif self.num_local < self.num_heads:
            heads.append(
                linear_ops.linear_attention(
                    *distant, key_padding_mask=key_padding_mask, chunk=chunk
                )
            )
        return self._merge(heads)

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """The state before the first frame; see :class:`TokenMixer`.

        ``frames_seen`` (B,) counts each stream's frames. Linear heads keep the
        ``largest`` keys and ``sums`` of closed buckets, and of the bucket that fills
        (``pending_*``), in float32 or wider; local heads keep the last two windows.
        """
        if not self.streamable:
            raise ValueError(self.unsupported_reason(chunk))
        weight = self.to_k.weight
        device = device or weight.device
        keys = torch.zeros(
            (batch_size, self.num_kv_heads, 0, self.dim_head),
            device=device,
            dtype=dtype or weight.dtype,
        )
        local, distant = self._by_kind(keys)
        frames_seen = torch.zeros(batch_size, dtype=torch.int64, device=device)
        state = {"frames_seen": frames_seen}
        if self.num_local:
            past = local_ops.init_past(local, local, window=self.window)
            state.update(zip(_LOCAL_STATE, past))
        if self.num_local < self.num_heads:
            state.update(zip(_LINEAR_STATE, linear_ops.init_past(distant, distant)))
        return state

    def _step(self, x, padding_mask, state):
        frames_seen = state["frames_seen"]
        new = frames_of_step(x, padding_mask, frames_seen)
        local, distant = self._project(x, x, None)
        new_state = {"frames_seen": frames_seen + new}
        heads = []
        if self.num_local:
            y, past = local_ops.local_attention_step(
                *local,
                past=tuple(state[name] for name in _LOCAL_STATE),
                frames_seen=frames_seen,
                window=self.window,
                padding_mask=padding_mask,
            )
            heads.append(y)
            new_state.update(zip(_LOCAL_STATE, past))
        if self.num_local < self.num_heads:
            y, past = linear_ops.causal_linear_attention_step(
                *distant,
                past=tuple(state[name] for name in _LINEAR_STATE),
                frames_seen=frames_seen,
                blindspot=self.blindspot_size,
                padding_mask=padding_mask,
            )
            heads.append(y)
            new_state.update(zip(_LINEAR_STATE, past))
        return self._merge(heads), new_state

    def _project(self, x, source, rotary):
        """Queries, keys and values of the local and of the linear heads."""
        q, k = self._split_heads(self.to_q(x)), self._split_heads(self.to_k(source))
        v = self._split_heads(self.to_v(source))
        if rotary is not None:
            q, k = rotate_pairs(q, rotary), rotate_pairs(k, rotary)
        return tuple(zip(*(self._by_kind(heads) for heads in (q, k, v))))

    def _split_heads(self, x):
        return x.unflatten(-1, (-1, self.dim_head)).transpose(1, 2)

    def _by_kind(self, heads):
        """The local and the linear heads; a single shared head is both."""
        if heads.shape[1] < self.num_heads:
            return heads, heads
        return heads[:, : self.num_local], heads[:, self.num_local :]

    def _merge(self, heads):
        heads = torch.cat(heads, dim=1).transpose(1, 2).flatten(2)
        return self.dropout(self.to_out(heads))

    def _check_context(self, rotary, chunk):
        if self.causal or self.num_local:
            raise ValueError(
                "a context needs a non-causal mixer without local heads, "
                f"got causal={self.causal}, n_local_attn_heads={self.num_local}"
            )
        if rotary is not None or chunk is not None:
            raise ValueError("a context takes neither rotary codes nor a chunk rule")


def _is_bounded(chunk):
    return chunk is not None and chunk.left_chunks is not None


def _all_the_past(chunk):
    return (
        "causal LinearAttention sums over all the past: it cannot honour "
        f"a bounded left context: {chunk}"
    )


_LOCAL_STATE = ("local_keys", "local_values", "local_hidden")
_LINEAR_STATE = ("largest", "sums", "pending_largest", "pending_sums")


def rotary_codes(num_frames, width, *, device=None, dtype=None):
    """Sines, then cosines, of position / 10000^(2p/width) for the channel pairs p.

    RoFormer, arXiv:2104.09864, equation 15.

    Arguments
    ---------
    num_frames : int
        Frames T.
    width : int
        Width of a head, even.
    device : torch.device, optional
        Where to make them.
    dtype : torch.dtype, optional
        Their floating type.

    Returns
    -------
    torch.Tensor
        (1, T, width).

    Raises
    ------
    ValueError
        If the width is odd.

    Example
    -------
    >>> rotary_codes(1, 4).tolist()
    [[[0.0, 0.0, 1.0, 1.0]]]
    """
    if width % 2:
        raise ValueError(f"rotary codes need an even head width, got {width}")
    # In float64, so that late frames have accurate angles.
    powers = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    positions = torch.arange(num_frames, device=device, dtype=torch.float64)
    angles = positions[:, None] * 10000.0**-powers
    codes = torch.cat([angles.sin(), angles.cos()], dim=-1)[None]
    return codes.to(dtype or torch.get_default_dtype())


def rotate_pairs(x, codes):
    """Turn each pair of channels (2p, 2p + 1) by its angle.

    Arguments
    ---------
    x : torch.Tensor
        (B, H, T, d).
    codes : torch.Tensor
        (1, T, d) from :func:`rotary_codes`.

    Returns
    -------
    torch.Tensor
        (B, H, T, d).
    """
    sin, cos = codes.to(x.dtype).chunk(2, dim=-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2)
