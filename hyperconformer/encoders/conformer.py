"""The Conformer encoder with a pluggable token mixer.

Conformer: "Conformer: Convolution-augmented Transformer for Speech Recognition",
arXiv:2005.08100, with the LayerNorm in place of BatchNorm that SpeechBrain uses.
HyperConformer: "HyperConformer: Multi-head HyperMixer for Efficient Speech
Recognition", arXiv:2305.18281.

Padded frames never reach real ones: they are cleared before every operation
that looks across time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hyperconformer.core.masks import ChunkRule
from hyperconformer.core.state import State, prefixed, within
from hyperconformer.encoders.stack import EncoderStack, build_encoder_mixer
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.nn.convolution import ConvolutionModule
from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.feed_forward import FeedForward
from hyperconformer.nn.normalization import named_norm


class ConformerEncoderLayer(nn.Module):
    """Half feed-forward, token mixer, convolution, half feed-forward.

    arXiv:2005.08100, equation 1, with any token mixer in place of self-attention.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    d_ffn : int
        Width of the feed-forward layers; also the hypernet size of HyperMixing
        unless ``mixer_options`` says otherwise.
    nhead : int
        Number of heads of the mixer.
    kernel_size : int
        Taps of the depthwise convolution.
    activation : type
        Activation class.
    bias : bool
        Whether the convolution module has biases.
    dropout : float
        Dropout rate.
    causal : bool
        Whether a frame may see nothing after itself.
    attention_type : str or type
        Name of a registered mixer, or a TokenMixer class.
    mixer_options : dict, optional
        The mixer's own options.

    Raises
    ------
    ValueError
        If the mixer or an option is unknown, or ``causal`` is asked of a mixer
        that sees the whole utterance.

    Example
    -------
    >>> layer = ConformerEncoderLayer(16, 32, nhead=2, kernel_size=3)
    >>> layer(torch.rand(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_ffn: int,
        nhead: int,
        kernel_size: int = 31,
        activation: Callable[[], nn.Module] = nn.SiLU,
        bias: bool = True,
        dropout: float = 0.0,
        causal: bool = False,
        attention_type: str | type[TokenMixer] = "hypermixing",
        mixer_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        # The name is SpeechBrain's: its state dicts say mha_layer whatever mixes.
        self.mha_layer = build_encoder_mixer(
            attention_type,
            d_model=d_model,
            num_heads=nhead,
            d_ffn=d_ffn,
            dropout=dropout,
            causal=causal,
            options=mixer_options,
        )
        self.convolution_module = ConvolutionModule(
            d_model, kernel_size, bias, activation, dropout, causal
        )
        self.ffn_module1 = self._half_step(d_model, d_ffn, activation, dropout)
        self.ffn_module2 = self._half_step(d_model, d_ffn, activation, dropout)
        self.norm1 = named_norm(d_model)
        self.norm2 = named_norm(d_model)

    @staticmethod
    def _half_step(d_model, d_ffn, activation, dropout):
        return nn.Sequential(
            nn.LayerNorm(d_model),
            FeedForward(d_model, d_ffn, activation, dropout),
            Dropout(dropout),
        )

    def forward(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
    ) -> torch.Tensor:
        """Encode one layer, (B, T, D) to (B, T, D); see :meth:`TokenMixer.forward`."""
        return self.step(x, padding_mask, chunk)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: ChunkRule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first frame; see :meth:`EncoderStack.init_state`."""
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        return {
            **prefixed(
                "mixer", self.mha_layer.init_state(batch_size, chunk=chunk, **like)
            ),
            **prefixed(
                "convolution", self.convolution_module.init_state(batch_size, **like)
            ),
        }

    def step(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State | None]:
        """Encode the next frames of each stream; see :meth:`EncoderStack.step`."""
        parts = self.mha_layer, self.convolution_module.step
        return self._encode(x, parts, padding_mask, chunk, state)

    def look_ahead(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor,
        chunk: ChunkRule,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State | None]:
        """Encode windows, (B, N, W, D); see :meth:`TokenMixer.look_ahead`."""
        parts = self.mha_layer.look_ahead, self.convolution_module.look_ahead
        return self._encode(x, parts, padding_mask, chunk, state)

    def _encode(self, x, parts, padding_mask, chunk, state):
        """The layer; ``parts``, mixer and convolution, are what looks across time."""
        mix, convolve = parts
        options = {"padding_mask": padding_mask, "chunk": chunk}
        x = torch.add(x, self.ffn_module1(x), alpha=0.5)
        mixed, mixed_state = mix(self.norm1(x), state=within("mixer", state), **options)
        x = x + mixed
        y, convolved_state = convolve(x, state=within("convolution", state), **options)
        x = x + y
        x = self.norm2(torch.add(x, self.ffn_module2(x), alpha=0.5))
        if mixed_state is None:
            return x, None
        return x, {
            **prefixed("mixer", mixed_state),
            **prefixed("convolution", convolved_state),
        }


class ConformerEncoder(EncoderStack):
    """A stack of :class:`ConformerEncoderLayer` and a final LayerNorm.

    It takes the arguments of :class:`EncoderStack`, and as options those of
    :class:`ConformerEncoderLayer`.

    Example
    -------
    >>> encoder = ConformerEncoder(2, 16, d_ffn=32, nhead=2, kernel_size=3)
    >>> y, hidden = encoder(torch.rand(2, 9, 16))
    >>> y.shape, len(hidden)
    (torch.Size([2, 9, 16]), 3)
    """

    layer_class = ConformerEncoderLayer
    requires = {"normalize_before": (True, "the Conformer normalises first")}
