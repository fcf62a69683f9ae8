"""SpeechBrain's self-attentions as token mixers: the baselines of every comparison.

The computation is SpeechBrain's; here it gets the mixers' interface, honours
causality and chunk rules, and never reads a padded frame.
"""

from functools import lru_cache

import torch
from speechbrain.nnet import attention

from hyperconformer.masks import chunk_mask, future_mask
from hyperconformer.mixers.base import TokenMixer


class _Attention(TokenMixer):
    """What the three attentions share; ``_attend`` calls SpeechBrain's forward.

    Each subclass inherits from SpeechBrain's module too, so that its parameters
    keep their names.
    """

    chunkable = True
    cost = "O(T^2)"

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        self.check_inputs(x, padding_mask, chunk, state)
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

    def _attend(self, x, hidden, padding_mask):
        raise NotImplementedError


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
    dropout : float
        Dropout rate of the attention weights.
    causal : bool
        Whether a frame may see nothing after itself.
    """

    needs_position = True
    paper = "arXiv:1706.03762"

    def __init__(self, d_model, num_heads, *, dropout=0.0, causal=False):
        attention.MultiheadAttention.__init__(
            self, nhead=num_heads, d_model=d_model, dropout=dropout
        )
        self.d_model, self.causal = d_model, causal

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


class RelPosMHAXL(_Attention, attention.RelPosMHAXL):
    """Attention with relative positions, "Transformer-XL", section 3.3.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads.
    dropout : float
        Dropout rate of the attention weights.
    causal : bool
        Whether a frame may see nothing after itself.
    """

    paper = "arXiv:1901.02860"

    def __init__(self, d_model, num_heads, *, dropout=0.0, causal=False):
        attention.RelPosMHAXL.__init__(
            self,
            embed_dim=d_model,
            num_heads=num_heads,
            dropout=dropout,
            mask_pos_future=causal,
        )
        self.d_model, self.causal = d_model, causal

    def _attend(self, x, hidden, padding_mask):
        positions = _relative_positions
        if torch.compiler.is_compiling():  # A traced tensor must not be kept.
            positions = positions.__wrapped__
        return attention.RelPosMHAXL.forward(
            self,
            x,
            x,
            x,
            positions(x.shape[1], self.d_model, x.dtype, x.device),
            attn_mask=hidden,
            key_padding_mask=padding_mask,
            return_attn_weights=False,
        )


@lru_cache(maxsize=2)  # Every layer of an encoder asks for the same codes.
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
    dropout : float
        Dropout rate of the attention weights.
    causal : bool
        Whether a frame may see nothing after itself.
    """

    paper = "arXiv:2104.09864"

    def __init__(self, d_model, num_heads, *, dropout=0.0, causal=False):
        attention.RoPEMHA.__init__(
            self, embed_dim=d_model, num_heads=num_heads, dropout=dropout
        )
        self.d_model, self.causal = d_model, causal

    def _attend(self, x, hidden, padding_mask):
        return attention.RoPEMHA.forward(
            self,
            x,
            x,
            x,
            attn_mask=hidden,
            key_padding_mask=padding_mask,
            return_attn_weights=False,
        )
