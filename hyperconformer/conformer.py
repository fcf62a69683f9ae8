"""The Conformer encoder with a pluggable token mixer.

Conformer: "Conformer: Convolution-augmented Transformer for Speech Recognition",
arXiv:2005.08100, with the LayerNorm in place of BatchNorm that SpeechBrain uses.
HyperConformer: "HyperConformer: Multi-head HyperMixer for Efficient Speech
Recognition", arXiv:2305.18281.

Padded frames never reach real ones: they are cleared before every operation
that looks across time.
"""

from typing import Any, Callable, Dict, Optional, Tuple, Type, Union

import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.dropout import Dropout, activate, has_hooks
from hyperconformer.encoder import (
    EncoderStack,
    FeedForward,
    build_encoder_mixer,
    named_norm,
    prefixed,
    within,
)
from hyperconformer.linear import Linear
from hyperconformer.masks import ChunkRule, last_frames
from hyperconformer.mixers.base import State, TokenMixer
from hyperconformer.ops.gated_convolution import depthwise, gated_convolution
from hyperconformer.ops.linear import linear


class ConvolutionModule(nn.Module):
    """LayerNorm, gated pointwise, depthwise over time, LayerNorm, pointwise.

    arXiv:2005.08100, section 2.2. Under a chunk rule a frame sees the kernel's
    whole left side but nothing after its chunk (dynamic chunk convolution,
    arXiv:2304.09325).

    Arguments
    ---------
    d_model : int
        Width of the frames.
    kernel_size : int
        Taps of the depthwise convolution; odd unless ``causal``.
    bias : bool
        Whether the convolutions and the last Linear have a bias.
    activation : type
        Activation class after the depthwise convolution.
    dropout : float
        Dropout rate of the output.
    causal : bool
        Whether the kernel looks to the left only.

    Raises
    ------
    ValueError
        If ``kernel_size`` is even and ``causal`` is False.

    Example
    -------
    >>> ConvolutionModule(16, kernel_size=3)(torch.rand(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        d_model: int,
        kernel_size: int = 31,
        bias: bool = True,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__()
        if not causal and kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.causal = causal
        self.left = kernel_size - 1 if causal else kernel_size // 2
        self.right = 0 if causal else kernel_size // 2
        self.layer_norm = nn.LayerNorm(d_model)
        self.bottleneck = nn.Sequential(
            nn.Conv1d(d_model, 2 * d_model, kernel_size=1, bias=bias),
            nn.GLU(dim=-1),
        )
        self.conv = nn.Conv1d(
            d_model, d_model, kernel_size=kernel_size, groups=d_model, bias=bias
        )
        self.after_conv = nn.Sequential(
            nn.LayerNorm(d_model),
            activation(),
            Linear(d_model, d_model, bias=bias),
            Dropout(dropout),
        )

    def forward(
        self,
        x: torch.Tensor,
        padding_mask: Optional[torch.Tensor] = None,
        chunk: Optional[ChunkRule] = None,
    ) -> torch.Tensor:
        """Convolve over time.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding.
        chunk : hyperconformer.masks.ChunkRule, optional
            Where the view to the right ends; its left side does not concern the
            convolution, whose kernel is bounded anyway.

        Returns
        -------
        torch.Tensor
            (B, T, D).
        """
        return self.step(x, padding_mask, chunk)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> State:
        """The state before the first frame of ``batch_size`` streams.

        Arguments
        ---------
        batch_size : int
            Number of streams.
        device : torch.device, optional
            Where the tensors live.
        dtype : torch.dtype, optional
            Their floating type.

        Returns
        -------
        dict of str to torch.Tensor
            ``past`` (B, left, D), the last inputs of the depthwise convolution.
        """
        shape = (batch_size, self.left, self.layer_norm.normalized_shape[0])
        return {"past": torch.zeros(shape, device=device, dtype=dtype)}

    def step(
        self,
        x: torch.Tensor,
        padding_mask: Optional[torch.Tensor] = None,
        chunk: Optional[ChunkRule] = None,
        state: Optional[State] = None,
    ) -> Tuple[torch.Tensor, Optional[State]]:
        """Convolve the next frames of each stream.

        Arguments
        ---------
        x, padding_mask, chunk
            As in :meth:`forward`; padding follows the real frames. A step takes whole
            chunks, but for the last of a stream.
        state : dict of str to torch.Tensor, optional
            From :meth:`init_state` or the last step, not changed; None = the streams
            begin and end here.

        Returns
        -------
        y : torch.Tensor
            (B, T, D).
        state : dict of str to torch.Tensor or None
            The state after these frames.
        """
        pointwise: Any
        pointwise, gate = self.bottleneck
        x = linear(self.layer_norm(x), pointwise.weight.squeeze(-1), pointwise.bias)
        weight, bias, left = self.conv.weight, self.conv.bias, self.left
        is_glu = type(gate) is nn.GLU and not has_hooks(gate)
        if is_glu and state is None and (chunk is None or self.causal):
            x = gated_convolution(x, weight, bias, left=left, padding_mask=padding_mask)
            return self._after(x), None
        x, frames = gate(x), x.shape[1]
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        if state is not None:
            if chunk is None and not self.causal:
                raise ValueError("a convolution that looks ahead streams in chunks")
            new = None if padding_mask is None else (~padding_mask).sum(1)
            x, left = torch.cat([state["past"], x], dim=1), 0
            state = {"past": last_frames(x, new, self.left)}
        if self.causal or chunk is None:
            x = F.pad(x, (0, 0, left if self.causal else 0, 0)).unsqueeze(1)
            x = depthwise(x, weight, bias, 0 if self.causal else left).squeeze(1)
        else:
            x = F.pad(x, (0, 0, left, -frames % chunk.chunk_frames))
            x = self._depthwise_in_chunks(x, chunk.chunk_frames)[:, :frames]
        return self._after(x), state

    def _after(self, x):
        """What follows the depthwise convolution."""
        norm, activation, pointwise, dropout = self.after_conv
        return dropout(pointwise(activate(activation, norm(x))))

    def _depthwise_in_chunks(self, x, chunk_frames):
        """Convolve (B, left + T, D), T in whole chunks, to (B, T, D)."""
        x = x.unfold(1, self.left + chunk_frames, chunk_frames).transpose(2, 3)
        x = F.pad(x, (0, 0, 0, self.right))
        return depthwise(x, self.conv.weight, self.conv.bias).flatten(1, 2)


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
        attention_type: Union[str, Type[TokenMixer]] = "hypermixing",
        mixer_options: Optional[Dict[str, Any]] = None,
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
        padding_mask: Optional[torch.Tensor] = None,
        chunk: Optional[ChunkRule] = None,
    ) -> torch.Tensor:
        """Encode one layer.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding.
        chunk : hyperconformer.masks.ChunkRule, optional
            How far each frame may see.

        Returns
        -------
        torch.Tensor
            (B, T, D).
        """
        return self.step(x, padding_mask, chunk)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: Optional[ChunkRule] = None,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> State:
        """The state before the first frame; see :meth:`EncoderStack.init_state`."""
        like: Dict[str, Any] = {"device": device, "dtype": dtype}
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
        padding_mask: Optional[torch.Tensor] = None,
        chunk: Optional[ChunkRule] = None,
        state: Optional[State] = None,
    ) -> Tuple[torch.Tensor, Optional[State]]:
        """Encode the next frames of each stream; see :meth:`EncoderStack.step`."""
        mixer_state, conv_state = within("mixer", state), within("convolution", state)
        x = torch.add(x, self.ffn_module1(x), alpha=0.5)
        mixed, mixer_state = self.mha_layer(
            self.norm1(x), padding_mask=padding_mask, chunk=chunk, state=mixer_state
        )
        x = x + mixed
        y, conv_state = self.convolution_module.step(x, padding_mask, chunk, conv_state)
        x = x + y
        x = self.norm2(torch.add(x, self.ffn_module2(x), alpha=0.5))
        if state is None:
            return x, None
        return x, {
            **prefixed("mixer", mixer_state),
            **prefixed("convolution", conv_state),
        }


class ConformerEncoder(EncoderStack):
    """A stack of :class:`ConformerEncoderLayer` and a final LayerNorm.

    Arguments
    ---------
    num_layers : int
        Number of layers.
    d_model : int
        Width D of the frames.
    layerdrop_prob : float
        Probability of leaving out each layer in training.
    **layer_options
        As :class:`ConformerEncoderLayer`.

    Raises
    ------
    ValueError
        As :class:`ConformerEncoderLayer`.

    Example
    -------
    >>> encoder = ConformerEncoder(2, 16, d_ffn=32, nhead=2, kernel_size=3)
    >>> y, hidden = encoder(torch.rand(2, 9, 16))
    >>> y.shape, len(hidden)
    (torch.Size([2, 9, 16]), 3)
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        *,
        layerdrop_prob: float = 0.0,
        **layer_options: Any,
    ):
        layers = (
            ConformerEncoderLayer(d_model=d_model, **layer_options)
            for _ in range(num_layers)
        )
        super().__init__(layers, d_model, layerdrop_prob)
