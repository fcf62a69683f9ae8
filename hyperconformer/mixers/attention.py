"""SpeechBrain's self-attentions as token mixers: the baselines of every comparison.

The computation is SpeechBrain's; here it gets the mixers' interface, honours
causality and chunk rules, and never reads a padded frame.

SpeechBrain's modules take no cached keys and values, so that a stream would project
its left context again with every chunk. Streams are computed here instead, with the
modules' parameters.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.nnet import attention

from hyperconformer.core.masks import chunk_mask, future_mask, last_frames
from hyperconformer.core.recording import is_recorded, kept
from hyperconformer.mixers.base import TokenMixer, frames_of_step
from hyperconformer.mixers.linear_attention import rotary_codes, rotate_pairs
from hyperconformer.ops.linear import linear


class _Attention(TokenMixer):
    """What the three attentions share; ``_attend`` calls SpeechBrain's forward.

    Each subclass inherits from SpeechBrain's module too, so that its parameters
    keep their names. For streams it says how frames become queries, keys and values
    (``_project``), and how queries read a window of them (``_read``).
    """

    @dataclass(kw_only=True)
    class Options:
        """The options of the three attentions."""

        dropout: float = 0.0
        """Dropout rate of the attention weights."""

        causal: bool = False
        """Whether a frame may see nothing after itself."""

    chunkable = True
    streamable = True
    quadratic = True
    cost = "O(T^2)"

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        self.check_inputs(x, padding_mask, chunk, state)
        if state is not None:
            return self._step(x, padding_mask, chunk, state)
        frames = x.shape[1]
        hidden = None
        if self.causal:
            hidden = future_mask(frames, x.device)
        if chunk is not None:
            beyond = chunk_mask(frames, chunk, x.device)
            hidden = beyond if hidden is None else hidden | beyond
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
            if chunk is not None:
                padding_mask = _hide_only_in_reach(padding_mask, chunk)
        return self._attend(x, hidden, padding_mask), None

    def look_ahead(self, x, *, padding_mask=None, chunk, state=None):
        """See :meth:`TokenMixer.look_ahead`.

        An unbounded left context is that of all the chunks of ``x``, if no state is
        given.
        """
        if state is None and chunk.left_chunks is None:
            chunk = replace(chunk, left_chunks=x.shape[1])
        return super().look_ahead(
            x, padding_mask=padding_mask, chunk=chunk, state=state
        )

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """No keys and values yet; see :meth:`TokenMixer.init_state`.

        Returns
        -------
        dict of str to torch.Tensor
            ``frames_seen`` (B,) int64; ``keys`` and ``values`` (B, P, H, d) of the
            last P = ``left_chunks * chunk_frames`` frames.

        Raises
        ------
        ValueError
            If ``chunk`` does not bound the left context: what there is to remember
            would grow for ever.
        """
        weight = next(self.parameters())
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        past = self._past_frames(chunk)
        shape = (batch_size, past, self.num_heads, self.d_model // self.num_heads)
        return {
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "keys": torch.zeros(shape, device=device, dtype=dtype),
            "values": torch.zeros(shape, device=device, dtype=dtype),
        }

    def unsupported_reason(self, chunk=None):
        """See :meth:`TokenMixer.unsupported_reason`."""
        if chunk is None or chunk.left_chunks is None:
            return (
                f"{type(self).__name__} streams only under a chunk rule with "
                f"left_chunks, which bounds what it remembers, got {chunk}"
            )
        return None

    def _past_frames(self, chunk):
        reason = self.unsupported_reason(chunk)
        if reason:
            raise ValueError(reason)
        return chunk.left_chunks * chunk.chunk_frames

    def _step(self, x, padding_mask, chunk, state):
        past, frames = self._past_frames(chunk), x.shape[1]
        if state["keys"].shape[1] != past:
            raise ValueError(
                f"a state of {past} past frames is needed for {chunk}, got one of "
                f"{state['keys'].shape[1]}: make it with init_state(chunk=...)"
            )
        seen = state["frames_seen"]
        new = frames_of_step(x, padding_mask, seen, chunk)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        q, k, v = self._project(x)
        keys = torch.cat([state["keys"].to(k.dtype), k], dim=1)
        values = torch.cat([state["values"].to(v.dtype), v], dim=1)

        # Every stream's new frames begin a chunk, and stand at slot `past`.
        if chunk.right_frames:  # A window is one chunk, see look_ahead.
            hidden = x.new_zeros(frames, past + frames, dtype=torch.bool)
        else:
            hidden = chunk_mask(past + frames, chunk, x.device)[past:]
        if self.causal:
            hidden = hidden | future_mask(past + frames, x.device)[past:]
        slot = torch.arange(past + frames, device=x.device) - past
        nothing = (slot < -seen[:, None]) | (slot >= new[:, None])
        hidden = hidden | nothing.unsqueeze(1)
        # A padded frame that sees nothing sees all: a softmax over nothing is NaN.
        hidden = hidden & ~hidden.all(dim=2, keepdim=True)

        real = None if padding_mask is None else new
        by_head = (tensor.transpose(1, 2) for tensor in (q, keys, values))
        y = self._read(*by_head, hidden.unsqueeze(1)).transpose(1, 2).flatten(2)
        return self._output(y), {
            "frames_seen": seen + new,
            "keys": last_frames(keys, real, past).to(state["keys"].dtype),
            "values": last_frames(values, real, past).to(state["values"].dtype),
        }

    def _attend(self, x, hidden, padding_mask):
        """SpeechBrain's attention, (B, T, D) to (B, T, D)."""
        raise NotImplementedError

    def _project(self, x):
        """Queries, keys and values of frames (B, T, D), each (B, T, H, d)."""
        x = linear(x, self.in_proj_weight)
        return x.unflatten(-1, (self.num_heads, -1)).chunk(3, dim=-1)

    def _read(self, q, k, v, hidden):
        """What queries read: (B, H, T, d), (B, H, P + T, d) twice, (B, 1, T, P + T).

        The first query stands at the slot P of the keys.
        """
        raise NotImplementedError

    def _output(self, y):
        """The last projection, (B, T, D) to (B, T, D)."""
        return self.out_proj(y)


def _hide_only_in_reach(padding_mask, chunk):
    """Unhide padding in the chunks past each utterance's last real one.

    No real frame sees those chunks, but a padded query with a bounded left context
    would see no key at all, and the softmax over nothing is NaN.
    """
    index = torch.arange(padding_mask.shape[1], device=padding_mask.device)
    last = torch.where(padding_mask, -1, index).amax(dim=1, keepdim=True)
    return padding_mask & (index // chunk.chunk_frames <= last // chunk.chunk_frames)


class RegularMHA(_Attention, attention.MultiheadAttention):
    """Scaled dot-product attention, "Attention Is All You Need", equation 1.

    Blind to order: the encoder adds absolute position codes to its input.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads.
    **given
        :class:`Options`.
    """

    needs_position = True
    paper = "arXiv:1706.03762"

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        options = self.Options(**given)
        attention.MultiheadAttention.__init__(
            self, nhead=num_heads, d_model=d_model, dropout=options.dropout
        )
        self.d_model, self.num_heads = d_model, num_heads
        self.causal = options.causal

    def _attend(self, x, hidden, padding_mask):
        return attention.MultiheadAttention.forward(
            self,
            x,
            x,
            x,
            attn_mask=hidden,
            key_padding_mask=padding_mask,
            return_attn_weights=False,
        )

    def _project(self, x):
        x = linear(x, self.att.in_proj_weight, self.att.in_proj_bias)
        return x.unflatten(-1, (3, self.num_heads, -1)).unbind(2)

    def _read(self, q, k, v, hidden):
        dropout = self.att.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, ~hidden, dropout)

    def _output(self, y):
        return self.att.out_proj(y)


class RelPosMHAXL(_Attention, attention.RelPosMHAXL):
    """Attention with relative positions, "Transformer-XL", section 3.3.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads.
    **given
        :class:`Options`.
    """

    # SpeechBrain holds its softmax and its position codes in float32.
    dtypes = (torch.float32,)
    paper = "arXiv:1901.02860"

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        options = self.Options(**given)
        attention.RelPosMHAXL.__init__(
            self,
            embed_dim=d_model,
            num_heads=num_heads,
            dropout=options.dropout,
            mask_pos_future=options.causal,
        )
        self.d_model, self.causal = d_model, options.causal

    def _attend(self, x, hidden, padding_mask):
        return attention.RelPosMHAXL.forward(
            self,
            x,
            x,
            x,
            _relative_positions(x.shape[1], self.d_model, x.dtype, x.device),
            attn_mask=hidden,
            key_padding_mask=padding_mask,
            return_attn_weights=False,
        )

    def _read(self, q, k, v, hidden):
        frames, slots = hidden.shape[2:]
        codes = _relative_positions(slots, self.d_model, q.dtype, q.device)
        # Row r holds the distance slots - 1 - r of a query from a key before it.
        codes = self.linear_pos(codes[:, : slots + frames - 1])
        codes = codes.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        u, w = (
            bias.view(self.num_heads, 1, -1)
            for bias in (self.pos_bias_u, self.pos_bias_v)
        )
        by_content = (q + u) * self.scale @ k.mT
        by_position = (q + w) * self.scale @ codes.mT
        frame = torch.arange(frames, device=q.device)
        slot = torch.arange(slots, device=q.device)
        row = frames - 1 - frame[:, None] + slot
        by_position = by_position.gather(3, row.expand(by_content.shape))
        scores = (by_content + by_position).masked_fill(hidden, -float("inf"))
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        return self.dropout_att(weights) @ v


@kept(maxsize=2)  # Every layer of an encoder asks for the same codes.
def _relative_positions(frames, d_model, dtype, device):
    """(1, 2 T - 1, D) codes."""
    return attention.RelPosEncXL(d_model, dtype).to(device).make_pe(frames)


class RoPEMHA(_Attention, attention.RoPEMHA):
    """Attention with rotary positions, "RoFormer", equation 34.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads; the width of one must be even.
    **given
        :class:`Options`.
    """

    paper = "arXiv:2104.09864"

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        options = self.Options(**given)
        attention.RoPEMHA.__init__(
            self, embed_dim=d_model, num_heads=num_heads, dropout=options.dropout
        )
        self.d_model, self.causal = d_model, options.causal

    def _attend(self, x, hidden, padding_mask):
        if is_recorded():
            # SpeechBrain keeps its codes for later calls: not those of a recording.
            return self._attend_with_own_codes(x, hidden, padding_mask)
        return attention.RoPEMHA.forward(
            self,
            x,
            x,
            x,
            attn_mask=hidden,
            key_padding_mask=padding_mask,
            return_attn_weights=False,
        )

    def _attend_with_own_codes(self, x, hidden, padding_mask):
        if hidden is None:
            hidden = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        if padding_mask is not None:
            hidden = hidden | padding_mask.unsqueeze(1)
        by_head = (tensor.transpose(1, 2) for tensor in self._project(x))
        y = self._read(*by_head, hidden.unsqueeze(-3)).transpose(1, 2).flatten(2)
        return self._output(y)

    def _read(self, q, k, v, hidden):
        # Keys are kept unrotated and turned by their slot: only distances count, and
        # the angles of a long stream would lose their precision.
        codes = rotary_codes(k.shape[2], k.shape[3], device=k.device, dtype=k.dtype)
        q, k = rotate_pairs(q, codes[:, -q.shape[2] :]), rotate_pairs(k, codes)
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(
            q, k, v, ~hidden, dropout, scale=self.scale
        )
