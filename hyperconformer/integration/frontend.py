"""From samples to encoder frames: features, normalisation, strided convolutions.

SpeechBrain's own parts, made to respect the length of each utterance, so that a
batch gives what each utterance gives alone.
"""

import copy
import math
from typing import Any, Dict, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models import convolution
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.processing.features import STFT, spectral_magnitude
from speechbrain.utils.autocast import fwd_default_precision
from torch import nn

from hyperconformer.dropout import has_hooks
from hyperconformer.integration.replace import replace_layers
from hyperconformer.masks import (
    last_frames,
    lengths_to_padding_mask,
    relative_to_frames,
)
from hyperconformer.mixers.base import State
from hyperconformer.ops.backend import is_recorded
from hyperconformer.ops.convolution import conv_nd
from hyperconformer.ops.convolution_block import Geometry, convolution_block


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
        self, x: torch.Tensor, lengths: Optional[torch.Tensor] = None
    ) -> Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]:
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
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> State:
        """The state before the first feature of ``batch_size`` streams.

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

        like: Dict[str, Any] = {"device": device, "dtype": dtype}
        silence = torch.zeros(1, self.stride, self.input_shape[-1], **like)
        self._through_blocks(
            silence, torch.tensor([self.stride], device=device), record
        )
        return state

    def step(
        self, x: torch.Tensor, lengths: torch.Tensor, state: State
    ) -> Tuple[torch.Tensor, torch.Tensor, State]:
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

        Returns
        -------
        y : torch.Tensor
            (B, T', F', C).
        lengths : torch.Tensor
            (B,) int64 frames of each output.
        state : dict of str to torch.Tensor
            The state after these features.
        """
        new_state = {}

        def convolve(layer, x, lengths):
            name = self._names[layer]
            if name not in state:
                return _after_zeros(layer, x, lengths)
            past, fill = state[name], _fill(layer, x)
            x = torch.cat([past, _cleared(x, lengths)], dim=1)
            new_state[name] = last_frames(x, lengths, past.shape[1])
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
        block, y = layers[:3], None
        if convolve in (_reflected, _after_zeros) and _is_one_operator(block):
            y = _as_one_operator(*block, x, lengths, convolve)
        if y is not None:
            x, lengths, layers = y, _strided(block[0], lengths), layers[3:]
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
    """A block of three layers; None where the kernels cannot take it."""
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
    x = F.pad(_cleared(x, lengths), (0, 0, 0, 0, _left(layer), _fill(layer, x)))
    return _convolve(layer, x), _strided(layer, lengths)


def _reflected(layer, x, lengths):
    """A convolution that reflects each utterance at both of its ends."""
    time_pad = _half(layer, -1)
    if not is_recorded() and lengths.min() <= time_pad:
        raise ValueError(
            f"an utterance of {lengths.min().item()} frames is too short for the "
            f"convolutional front end, which needs more than {time_pad} at every layer"
        )
    end_pad = time_pad
    if is_recorded() or (lengths < x.shape[1]).any():
        x, end_pad = _reflect_ends(x, lengths, time_pad), 0
    return _convolve(layer, x, (time_pad, end_pad)), _strided(layer, lengths)


def _cleared(x, lengths):
    """Zeros past each end."""
    if not is_recorded() and (lengths == x.shape[1]).all():
        return x
    mask = lengths_to_padding_mask(lengths, x.shape[1])
    return x.masked_fill(mask[:, :, None, None], 0.0)


def _convolve(layer, x, time_pads=(0, 0)):
    """One SpeechBrain Conv2d on (B, T, F, C), channels last as they lie in memory."""
    # SpeechBrain transposes to (B, C, F, T): its last axis is time.
    freq_pad = _half(layer, 0)
    x = x.permute(0, 3, 1, 2)
    x = F.pad(x, (freq_pad, freq_pad, *time_pads), mode=layer.padding_mode)
    stride = layer.stride[::-1]
    if max(layer.kernel_size) == 1:
        # The same. With a stride, oneDNN 3.12 of torch 2.14 writes past the end of
        # memory in the backward pass of a kernel of 1 x 1 over channels-last frames.
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    return conv_nd(
        x,
        layer.conv.weight.transpose(2, 3),
        layer.conv.bias,
        stride=stride,
        padding=(0, 0),
        dilation=layer.dilation[::-1],
        groups=layer.conv.groups,
    ).permute(0, 2, 3, 1)


def _reflect_ends(x, lengths, width):
    """Clear what lies past each end, but for ``width`` frames reflected there.

    The batch becomes ``width`` frames longer, so that there is room for them.
    """
    x = F.pad(x, (0, 0, 0, 0, 0, width))
    mask = lengths_to_padding_mask(lengths, x.shape[1])
    source = x = x.masked_fill(mask[:, :, None, None], 0.0)
    rows = torch.arange(x.shape[0], device=x.device)
    for step in range(width):
        mirrored = source[rows, lengths - 2 - step]
        x = x.index_put((rows, lengths + step), mirrored)
    return x


def _is_plain_fbank(features):
    """Whether each of the features depends on one window alone."""
    return (
        isinstance(features, Fbank)
        and not (features.deltas or features.context)
        and features.compute_STFT.pad_mode == "constant"
    )


def frame_ms(extractor, frontend):
    """How long an encoder frame lasts.

    Arguments
    ---------
    extractor : FeatureExtractor
        Samples to features.
    frontend : ConvolutionFrontEnd
        Features to frames.

    Returns
    -------
    float
        In milliseconds.
    """
    stft = extractor.features.compute_STFT
    return frontend.stride * stft.hop_length * 1000 / stft.sample_rate


def look_ahead_ms(extractor):
    """How far the features of a chunk look past its end.

    A window is centred on its frame, the last of which lies a hop before the end.

    Arguments
    ---------
    extractor : FeatureExtractor
        Samples to features.

    Returns
    -------
    float
        In milliseconds.
    """
    stft = extractor.features.compute_STFT
    samples = max(heard_after(stft) - stft.hop_length, 0)
    return samples * 1000 / stft.sample_rate


def heard_after(stft):
    """How many samples after its frame a window of a centred STFT hears.

    Where the window is shorter than the FFT it lies in the middle of it: what is right
    of it meets zeros.
    """
    end = (stft.n_fft - stft.win_length) // 2 + stft.win_length
    return end - stft.n_fft // 2


def _normalize_each(features, lengths):
    """Bring each utterance's real frames to mean 0 and deviation 1."""
    padding = lengths_to_padding_mask(lengths, features.shape[1]).unsqueeze(-1)
    count = lengths[:, None, None]
    mean = features.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
    features = features - mean
    squares = features.masked_fill(padding, 0.0).square().sum(1, keepdim=True)
    # A feature that never moves stays at 0 instead of becoming noise.
    return features / (squares / count).sqrt().clamp(min=1e-3)


class ZeroMeanSTFT(STFT):
    """SpeechBrain's STFT of frames whose mean has been subtracted.

    A cheap microphone adds a constant to all samples. Through the side lobes of the
    window it would reach every frequency. The mean is taken over a frame's recorded
    samples, so that the output does not depend on the constant, at the ends either.

    Arguments
    ---------
    *args, **kwargs
        As ``speechbrain.processing.features.STFT``, for one channel and
        ``pad_mode="constant"``.

    Example
    -------
    >>> stft = ZeroMeanSTFT(16000, n_fft=512)
    >>> x = torch.randn(1, 1600)
    >>> bool((stft(x + 0.5) - stft(x)).abs().max() < 1e-4)
    True
    """

    def forward(self, x, recorded=None):
        """Transform.

        Arguments
        ---------
        x : torch.Tensor
            (B, N) samples.
        recorded : torch.Tensor, optional
            (B, N) bool, False for padding; None = all is recorded.

        Returns
        -------
        torch.Tensor
            (B, T, F, 2), real and imaginary part.
        """
        if recorded is None:
            recorded = torch.ones_like(x, dtype=torch.bool)
        frames, recorded = self._frames(x), self._frames(recorded.to(x.dtype))
        counts = recorded.sum(-1, keepdim=True).clamp(min=1)
        means = (frames * recorded).sum(-1, keepdim=True) / counts
        frames = (frames - means) * recorded * self.window.to(x)
        left = self._margin()
        frames = F.pad(frames, (left, self.n_fft - self.win_length - left))
        return torch.view_as_real(torch.fft.rfft(frames))

    def _margin(self):
        """Where a window begins in the interval of its transform, as in torch.stft."""
        return (self.n_fft - self.win_length) // 2

    def _frames(self, x):
        """(B, T, win_length) samples under each window."""
        if self.center:
            x = F.pad(x, (self.n_fft // 2,) * 2)
        x = x[:, self._margin() :]
        right = self.n_fft - self.win_length - self._margin()
        x = x[:, : x.shape[1] - right]
        return x.unfold(-1, self.win_length, self.hop_length)


class FeatureExtractor(nn.Module):
    """Samples to normalised features, with exact lengths.

    The mean and deviation of each feature are those of the utterance, or they are
    measured once on the training set (:meth:`fit`) and are buffers. SpeechBrain's
    ``InputNormalization`` instead drifts through the first epochs and keeps its
    statistics out of the state dict, so that a model's weights alone would not be
    the model.

    Arguments
    ---------
    features : torch.nn.Module
        ``speechbrain.lobes.features.Fbank``, or another on a centred STFT.
    num_features : int
        Features a frame.
    normalization : str
        ``"global"``, by the training set's statistics (works while streaming);
        ``"level"``, the same after each utterance's mean power has been made one, so
        that a recording's volume does not matter; or ``"utterance"``, by each
        utterance's own statistics (forgives speakers and channels).
    top_db : float, optional
        Range below an utterance's loudest feature to which the others are clipped,
        SpeechBrain's 80 dB; None = no clipping (works while streaming, where the
        loudest feature may be still to come).
    remove_offset : bool
        Whether each frame loses its mean (:class:`ZeroMeanSTFT`), for an ``Fbank``
        without deltas or context. SpeechBrain's features keep it.

    Raises
    ------
    ValueError
        If the normalization is unknown, or the offset of such features cannot be
        removed.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> extractor = FeatureExtractor(Fbank(n_mels=80), 80)
    >>> x, lengths = extractor(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> x.shape, lengths.tolist()
    (torch.Size([2, 101, 80]), [101, 51])
    """

    def __init__(
        self,
        features,
        num_features,
        normalization="global",
        top_db=80.0,
        remove_offset=False,
    ):
        super().__init__()
        if normalization not in ("global", "level", "utterance"):
            raise ValueError(
                "normalization must be 'global', 'level' or 'utterance', got "
                f"{normalization!r}"
            )
        # SpeechBrain's Fbank does not hand this option to its Filterbank.
        features.compute_fbanks.top_db = math.inf if top_db is None else top_db
        if remove_offset:
            if not _is_plain_fbank(features):
                raise ValueError(
                    "remove_offset needs an Fbank without deltas or context, on an "
                    "STFT that pads with zeros"
                )
            stft = ZeroMeanSTFT(features.compute_STFT.sample_rate)
            vars(stft).update(vars(features.compute_STFT))
            features.compute_STFT = stft
        self.features = features
        self.normalization = normalization
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(self, wavs, wav_lens=None):
        """Extract and normalise.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples; padding may hold anything.
        wav_lens : torch.Tensor, optional
            (B,) relative lengths in (0, 1]; None = no padding.

        Returns
        -------
        features : torch.Tensor
            (B, T, F).
        lengths : torch.Tensor
            (B,) int64 frames, as many as each utterance alone would have.
        """
        if wav_lens is None:
            wav_lens = torch.ones(wavs.shape[0], device=wavs.device)
        samples = relative_to_frames(wav_lens, wavs.shape[1])
        padding = lengths_to_padding_mask(samples, wavs.shape[1])
        # Not multiplied by zero: padding may hold NaN.
        features = self._log_mels(wavs.masked_fill(padding, 0.0), ~padding)
        # A centred STFT has a frame at every multiple of the hop.
        hop = self.features.compute_STFT.hop_length
        lengths = (samples // hop + 1).clamp(max=features.shape[1])
        if self.normalization == "utterance":
            return _normalize_each(features, lengths), lengths
        if self.normalization == "level":
            features = features - self._level(features, lengths)
        return (features - self.mean) / self.std, lengths

    def _level(self, features, lengths):
        """(B, 1, 1) mean power of each utterance's frames and filters, in decibels."""
        decibels = self.features.compute_fbanks.multiplier
        padding = lengths_to_padding_mask(lengths, features.shape[1]).unsqueeze(-1)
        powers = (features * (math.log(10) / decibels)).masked_fill(padding, -math.inf)
        total = powers.logsumexp((1, 2), keepdim=True)
        count = lengths[:, None, None] * features.shape[2]
        return (total - count.log()) * (decibels / math.log(10))

    def check_streamable(self):
        """Refuse settings that need the whole utterance.

        Raises
        ------
        ValueError
            If a feature depends on more than the samples of its own window.
        """
        if self.normalization != "global":
            raise ValueError(
                f"normalization: {self.normalization} needs the whole utterance; "
                "streaming needs normalization: global"
            )
        if self.features.compute_fbanks.top_db != math.inf:
            raise ValueError(
                "top_db clips below the loudest feature of the whole utterance, got "
                f"{self.features.compute_fbanks.top_db}; streaming needs top_db: null"
            )
        if not _is_plain_fbank(self.features) or not self.features.compute_STFT.center:
            raise ValueError(
                "streaming needs an Fbank without deltas or context, on a centred "
                "STFT that pads with zeros"
            )

    @fwd_default_precision(cast_inputs=torch.float32)
    def _log_mels(self, samples, recorded):
        """(B, T, F) features before normalisation."""
        if not isinstance(self.features.compute_STFT, ZeroMeanSTFT):
            return self.features(samples)
        return self._fbanks(self.features.compute_STFT(samples, recorded))

    def _fbanks(self, spectra):
        return self.features.compute_fbanks(spectral_magnitude(spectra))

    def window_features(self, samples, recorded):
        """Features of consecutive windows, without the padding of :meth:`forward`.

        Arguments
        ---------
        samples : torch.Tensor
            (B, (T - 1) hop + n_fft) samples: the first window begins with them.
        recorded : torch.Tensor
            (B, (T - 1) hop + n_fft) bool, False before a stream's beginning and after
            its end.

        Returns
        -------
        torch.Tensor
            (B, T, F) normalised features.
        """
        stft = copy.copy(self.features.compute_STFT)
        stft.center = False
        if isinstance(stft, ZeroMeanSTFT):
            spectra = stft(samples, recorded)
        else:
            spectra = stft(samples)
        return (self._fbanks(spectra) - self.mean) / self.std

    @torch.no_grad()
    def fit(self, utterances):
        """Measure mean and deviation of each feature.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            (N,) samples each.

        Raises
        ------
        ValueError
            If there are no utterances.
        """
        count, total, squares = 0, 0.0, 0.0
        for samples in utterances:
            samples = samples.unsqueeze(0).to(self.mean.device)
            everything = torch.ones_like(samples, dtype=torch.bool)
            frames = self._log_mels(samples, everything)
            if self.normalization == "level":
                lengths = torch.tensor([frames.shape[1]], device=frames.device)
                frames = frames - self._level(frames, lengths)
            frames = frames[0].double()
            count += len(frames)
            total = total + frames.sum(dim=0)
            squares = squares + frames.square().sum(dim=0)
        if count == 0:
            raise ValueError("no utterance to measure the features on")
        mean = total / count
        self.mean.copy_(mean)
        variance = (squares / count - mean.square()).clamp(min=1e-10)
        self.std.copy_(variance.sqrt())
