"""The convolution module of a Conformer layer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.core.masks import ChunkRule, last_frames
from hyperconformer.core.state import State
from hyperconformer.nn.dropout import Dropout, activate, has_hooks
from hyperconformer.nn.linear import Linear
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
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
    ) -> torch.Tensor:
        """Convolve over time: (B, T, D) to (B, T, D); see ``TokenMixer.forward``.

        A chunk rule ends the view to the right. Its left side does not concern the
        convolution, whose kernel is bounded anyway.
        """
        return self.step(x, padding_mask, chunk)[0]

    def init_state(
        self,
        batch_size: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any frame; see ``TokenMixer.init_state``.

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
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State | None]:
        """Convolve the next frames of each stream; see ``TokenMixer.forward``.

        A step takes whole chunks, but for the last of a stream. Right frames are for
        :meth:`look_ahead`.
        """
        if chunk is not None:
            chunk.check_no_look_ahead()
        x, gate = self._pointwise(x)
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

    def look_ahead(
        self,
        x: torch.Tensor,
        *,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State]:
        """Convolve chunks with their look-ahead; see ``TokenMixer.look_ahead``.

        The kernel sees the own frames of the chunks before, the chunk and its
        look-ahead, and zeros after it.
        """
        x, gate = self._pointwise(x)
        x = gate(x)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        if state is None:
            state = self.init_state(x.shape[0], device=x.device, dtype=x.dtype)
        size, new = chunk.chunk_frames, None
        own = x[:, :, :size]
        if padding_mask is not None:
            new = (~padding_mask[:, :, :size]).sum((1, 2))
        history = torch.cat([state["past"].to(x.dtype), own.flatten(1, 2)], dim=1)
        # A view of no frames cannot be unfolded.
        past = x[:, :, :0]
        if self.left:
            past = history.unfold(1, self.left, size)[:, : x.shape[1]].transpose(2, 3)
        windows = F.pad(torch.cat([past, x], dim=2), (0, 0, 0, self.right))
        y = depthwise(windows, self.conv.weight, self.conv.bias)
        after = last_frames(history, new, self.left).to(state["past"].dtype)
        return self._after(y), {"past": after}

    def _pointwise(self, x):
        """What precedes the gate, and the gate."""
        pointwise: Any
        pointwise, gate = self.bottleneck
        x = linear(self.layer_norm(x), pointwise.weight.squeeze(-1), pointwise.bias)
        return x, gate

    def _after(self, x):
        """What follows the depthwise convolution."""
        norm, activation, pointwise, dropout = self.after_conv
        return dropout(pointwise(activate(activation, norm(x))))

    def _depthwise_in_chunks(self, x, chunk_frames):
        """Convolve (B, left + T, D), T in whole chunks, to (B, T, D)."""
        x = x.unfold(1, self.left + chunk_frames, chunk_frames).transpose(2, 3)
        x = F.pad(x, (0, 0, 0, self.right))
        return depthwise(x, self.conv.weight, self.conv.bias).flatten(1, 2)
