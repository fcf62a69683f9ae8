"""From samples to encoder frames: features, normalisation, strided convolutions.

SpeechBrain's own parts, made to respect the length of each utterance, so that a
batch gives what each utterance gives alone.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from speechbrain.lobes.models import convolution
from speechbrain.nnet.normalization import LayerNorm
from torch import nn

from hyperconformer.core.masks import last_frames
from hyperconformer.core.state import State
from hyperconformer.nn.dropout import has_hooks
from hyperconformer.nn.replace import replace_layers
from hyperconformer.ops.convolution_block import Geometry, convolution_block
from hyperconformer.ops.convolution_block.torch_path import clear, convolve, reflect


class ConvolutionFrontEnd(convolution.ConvolutionFrontEnd):
    """SpeechBrain's convolutional front end, with lengths.

    Same constructor, parameters and output for one utterance. SpeechBrain pads a
    batch by reflection at its common end, so that each shorter utterance sees its
    padding; here each utterance is reflected at its own end.

    A causal front end pads with zeros, and only to the left: ``span - stride`` of
    them before a kernel that spans ``span`` frames. A frame then sees the features
    of its own stride and those before, and none after.

    Arguments
    ---------
    *args, **kwargs
        As ``speechbrain.lobes.models.convolution.ConvolutionFrontEnd``, with
        two-dimensional convolutions and ``padding="same"``.
    causal : bool
        Whether to see no feature after a frame's own ones; streaming needs it.

    Raises
    ------
    ValueError
        If ``padding`` is not "same".

    Example
    -------
    >>> cnn = ConvolutionFrontEnd(
    ...     input_shape=(8, 10, 80), num_blocks=2, num_layers_per_block=1,
    ...     out_channels=(64, 32), kernel_sizes=(3, 3), strides=(2, 2),
    ...     residuals=(False, False),
    ... )
    >>> y, lengths = cnn(torch.rand(2, 101, 80), torch.tensor([101, 60]))
    >>> y.shape, lengths.tolist()
    (torch.Size([2, 26, 20, 32]), [26, 15])
    """

    causal = False  # SpeechBrain's constructor calls forward.

    def __init__(self, *args: Any, causal: bool = False, **kwargs: Any):
        if kwargs.get("padding", "same") != "same":
            raise ValueError(
                f"this front end needs padding='same', got {kwargs['padding']!r}"
            )
        super().__init__(*args, **kwargs)
        self.causal = causal
        replace_layers(self)

    @property
    def stride(self) -> int:
        """Features to a frame."""
        return math.prod(layer.stride[-1] for layer in self._convolutions())

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Convolve and subsample.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, F) features; padding may hold anything.
        lengths : torch.Tensor, optional
            (B,) int64 frames of each utterance.

        Returns
        -------
        y : torch.Tensor
            (B, T', F', C).
        lengths : torch.Tensor
            (B,) int64 frames of each output; only where lengths were given.

        Raises
        ------
        ValueError
            If an utterance is too short for a kernel to be reflected at its end;
            a causal front end takes any.
        """
        given = lengths is not None
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
        convolve = _after_zeros if self.causal else _reflected
        x, lengths = self._through_blocks(x, lengths, convolve)
        return (x, lengths) if given else x

    def _convolutions(self):
        """Those of the blocks, but for their shortcuts."""
        for block in self.children():
            for layer in block.convs.children():
                if isinstance(layer, convolution.Conv2d):
                    yield layer

    @torch.no_grad()
    def init_state(
        self,
        batch_size: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any feature; see :meth:`TokenMixer.init_state`.

        Returns
        -------
        dict of str to torch.Tensor
            Of each convolution, by its name, the (B, left, F, C) last inputs.

        Raises
        ------
        ValueError
            If the front end is not causal.
        """
        if not self.causal:
            raise ValueError("a front end that looks ahead cannot stream: causal=True")
        state = {}

        def record(layer, x, lengths):
            past = x.new_zeros(batch_size, _left(layer), *x.shape[2:])
            if past.shape[1] > 0:
                state[self._names[layer]] = past
            return _after_zeros(layer, x, lengths)

        like: dict[str, Any] = {"device": device, "dtype": dtype}
        silence = torch.zeros(1, self.stride, self.input_shape[-1], **like)
        self._through_blocks(
            silence, torch.tensor([self.stride], device=device), record
        )
        return state

    def step(
        self,
        x: torch.Tensor,
        lengths: torch.Tensor,
        state: State,
        keep: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Convolve and subsample the next features of each stream.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, F) features; padding may hold anything.
        lengths : torch.Tensor
            (B,) int64 real features, a multiple of :attr:`stride` in all but the
            last step of a stream.
        state : dict of str to torch.Tensor
            From :meth:`init_state` or the last step; not changed.
        keep : int, optional
            How many features, a multiple of :attr:`stride` as T is then, enter the
            state; the later ones will be computed again. None = all.

        Returns
        -------
        y : torch.Tensor
            (B, T', F', C).
        lengths : torch.Tensor
            (B,) int64 frames of each output.
        state : dict of str to torch.Tensor
            The state after the features that enter it.
        """
        new_state, features = {}, x.shape[1]

        def convolve(layer, x, lengths):
            name = self._names[layer]
            if name not in state:
                return _after_zeros(layer, x, lengths)
            past, fill, entering = state[name], _fill(layer, x), lengths
            if keep is not None:
                entering = lengths.clamp(max=keep * x.shape[1] // features)
            x = torch.cat([past, clear(x, lengths)], dim=1)
            new_state[name] = last_frames(x, entering, past.shape[1])
            x = F.pad(x, (0, 0, 0, 0, 0, fill))
            return _convolve(layer, x), _strided(layer, lengths)

        y, lengths = self._through_blocks(x, lengths, convolve)
        return y, lengths, new_state

    @property
    def _names(self):
        """Names of the layers, as in the state."""
        return {layer: name for name, layer in self.named_modules()}

    def _through_blocks(self, x, lengths, convolve):
        """Every layer in turn; ``convolve(layer, x, lengths)`` does what takes time."""
        x = x.unsqueeze(-1)
        for block in self.children():
            y, y_lengths = _through_layers(block.convs, x, lengths, convolve)
            if block.reduce_conv is not None:
                shortcut, _ = _through_layers(block.reduce_conv, x, lengths, convolve)
                y = block.drop(y + shortcut)
            x, lengths = y, y_lengths
        return x, lengths


def _through_layers(layers, x, lengths, convolve):
    layers = list(layers.children())
    while layers:
        block = layers[:3]
        if convolve in (_reflected, _after_zeros) and _is_one_operator(block):
            x = _as_one_operator(*block, x, lengths, convolve)
            lengths, layers = _strided(block[0], lengths), layers[3:]
        elif isinstance(layers[0], convolution.Conv2d):
            x, lengths = convolve(layers.pop(0), x, lengths)
        else:
            x = layers.pop(0)(x)
    return x, lengths


def _is_one_operator(layers):
    """Whether they are a block that :func:`convolution_block` knows."""
    kinds = [convolution.Conv2d, LayerNorm, nn.LeakyReLU]
    if [type(layer) for layer in layers] != kinds:
        return False
    layer, norm, rectifier = layers
    parts = layer, layer.conv, norm, norm.norm, rectifier
    return (
        not any(has_hooks(part) for part in parts)
        # Classes that torch derives for parametrizations have their forward.
        and type(norm.norm).forward is nn.LayerNorm.forward
        and norm.norm.bias is not None
        and set(layer.dilation) == {1}
        and layer.conv.groups == 1
        and layer.padding_mode == "reflect"
    )


def _as_one_operator(layer, norm, rectifier, x, lengths, convolve):
    """A block of three layers."""
    geometry = Geometry(
        stride=layer.stride[::-1],
        time_pad=_half(layer, -1) if convolve is _reflected else _left(layer),
        bin_pad=_half(layer, 0),
        reflects=convolve is _reflected,
        eps=norm.norm.eps,
        slope=rectifier.negative_slope,
    )
    # SpeechBrain's kernels are (C', C, bins, frames).
    weight, bias = layer.conv.weight.permute(3, 2, 1, 0), layer.conv.bias
    affine = norm.norm.weight, norm.norm.bias
    return convolution_block(x, lengths, weight, bias, *affine, geometry)


def _half(layer, axis):
    """What a convolution sees to either side: of bins (0) or frames (-1)."""
    return layer.dilation[axis] * (layer.kernel_size[axis] - 1) // 2


def _left(layer):
    """Frames before its own stride that a causal convolution sees."""
    span = layer.dilation[-1] * (layer.kernel_size[-1] - 1) + 1
    return max(span - layer.stride[-1], 0)


def _fill(layer, x):
    """Frames that a last, incomplete stride lacks."""
    return -x.shape[1] % layer.stride[-1]


def _strided(layer, lengths):
    return (lengths - 1) // layer.stride[-1] + 1


def _after_zeros(layer, x, lengths):
    """A causal convolution at the beginning of each utterance."""
    x = F.pad(clear(x, lengths), (0, 0, 0, 0, _left(layer), _fill(layer, x)))
    return _convolve(layer, x), _strided(layer, lengths)


def _reflected(layer, x, lengths):
    """A convolution that reflects each utterance at both of its ends."""
    x, time_pads = reflect(x, lengths, _half(layer, -1))
    return _convolve(layer, x, time_pads), _strided(layer, lengths)


def _convolve(layer, x, time_pads=(0, 0)):
    """One SpeechBrain Conv2d, whose last axis is time, on (B, T, F, C) frames."""
    return convolve(
        x,
        layer.conv.weight.transpose(2, 3),
        layer.conv.bias,
        stride=layer.stride[::-1],
        time_pads=time_pads,
        bin_pad=_half(layer, 0),
        dilation=layer.dilation[::-1],
        groups=layer.conv.groups,
        padding_mode=layer.padding_mode,
    )
