"""From samples to normalised features, with exact lengths."""

import copy
import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import STFT, spectral_magnitude
from speechbrain.utils.autocast import fwd_default_precision
from torch import nn

from hyperconformer.core.masks import (
    lengths_to_padding_mask,
    relative_to_frames,
)
from hyperconformer.core.state import State
from hyperconformer.model.level import (
    init_running_level,
    running_level,
    utterance_level,
)

NORMALIZATIONS = ("global", "level", "running_level", "utterance")


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
    samples = max(samples_after_centre(stft) - stft.hop_length, 0)
    return samples * 1000 / stft.sample_rate


def samples_after_centre(stft):
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
        that a recording's volume does not matter; ``"running_level"``, the same by the
        level of what was heard so far (works while streaming, see
        :func:`hyperconformer.model.level.running_level`); or ``"utterance"``, by each
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
        If the normalization is unknown, or such features have no level or offset
        that could be taken off.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> extractor = FeatureExtractor(Fbank(n_mels=80), 80)
    >>> x, lengths = extractor(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> x.shape, lengths.tolist()
    (torch.Size([2, 101, 80]), [101, 51])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        normalization: str = "global",
        top_db: float | None = 80.0,
        remove_offset: bool = False,
    ):
        super().__init__()
        # PyTorch types what a module holds as tensors and modules.
        self.features = cast(Any, features)
        if normalization not in NORMALIZATIONS:
            raise ValueError(
                f"normalization must be one of {', '.join(NORMALIZATIONS)}, got "
                f"{normalization!r}"
            )
        if "level" in normalization and not _is_plain_fbank(features):
            raise ValueError(
                f"normalization: {normalization} needs an Fbank without deltas or "
                "context, on an STFT that pads with zeros"
            )
        # SpeechBrain's Fbank does not hand this option to its Filterbank.
        self.features.compute_fbanks.top_db = math.inf if top_db is None else top_db
        if remove_offset:
            if not _is_plain_fbank(features):
                raise ValueError(
                    "remove_offset needs an Fbank without deltas or context, on an "
                    "STFT that pads with zeros"
                )
            stft = ZeroMeanSTFT(self.features.compute_STFT.sample_rate)
            stft.__dict__.update(vars(self.features.compute_STFT))
            self.features.compute_STFT = stft
        self.normalization = normalization
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
        features = features - self._level(features, lengths)
        return (features - self.mean) / self.std, lengths

    def _level(self, features, lengths):
        """(B, 1 or T, 1) decibels that are taken off the features of utterances."""
        if self.normalization == "level":
            decibels = self.features.compute_fbanks.multiplier
            return utterance_level(features, lengths, decibels)
        return self._running_level(features, self.init_state(features.shape[0]))[0]

    def _running_level(self, features, state):
        """The same of the next frames of streams, and the state after them."""
        if self.normalization != "running_level":
            return features.new_zeros(1, 1, 1), state
        stft, fbanks = self.features.compute_STFT, self.features.compute_fbanks
        level, memory = running_level(
            features,
            state["level"],
            stft.sample_rate / stft.hop_length,
            fbanks.multiplier * (math.log10(fbanks.amin) - fbanks.db_multiplier),
            fbanks.multiplier,
        )
        return level, {"level": memory}

    def init_state(self, batch_size: int) -> State:
        """What the features of streams depend on, besides the samples under them.

        Arguments
        ---------
        batch_size : int
            Number of streams.

        Returns
        -------
        dict of str to torch.Tensor
            ``level`` (B, 2) with ``normalization: running_level``, else nothing.
        """
        if self.normalization != "running_level":
            return {}
        like = {"device": self.mean.device, "dtype": self.mean.dtype}
        return {"level": init_running_level(batch_size, **like)}

    def check_streamable(self) -> None:
        """Refuse settings that need the whole utterance.

        Raises
        ------
        ValueError
            If a feature depends on more than the samples of its own window.
        """
        if self.normalization not in ("global", "running_level"):
            raise ValueError(
                f"normalization: {self.normalization} needs the whole utterance; "
                "streaming needs normalization: global or running_level"
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

    def window_features(
        self,
        samples: torch.Tensor,
        recorded: torch.Tensor,
        state: State,
        keep: int | None = None,
    ) -> tuple[torch.Tensor, State]:
        """Features of consecutive windows, without the padding of :meth:`forward`.

        Arguments
        ---------
        samples : torch.Tensor
            (B, (T - 1) hop + n_fft) samples: the first window begins with them.
        recorded : torch.Tensor
            (B, (T - 1) hop + n_fft) bool, False before a stream's beginning and after
            its end.
        state : dict of str to torch.Tensor
            From :meth:`init_state` or the last call; not changed.
        keep : int, optional
            How many windows enter the state; the later ones will be computed again.
            None = all.

        Returns
        -------
        features : torch.Tensor
            (B, T, F), normalised.
        state : dict of str to torch.Tensor
            The state after the windows that enter it.
        """
        stft = copy.copy(self.features.compute_STFT)
        stft.center = False
        if isinstance(stft, ZeroMeanSTFT):
            spectra = stft(samples, recorded)
        else:
            spectra = stft(samples)
        features = self._fbanks(spectra)
        level, after = self._running_level(features, state)
        if keep is not None and keep < features.shape[1]:
            _, after = self._running_level(features[:, :keep], state)
        return (features - level - self.mean) / self.std, after

    @torch.no_grad()
    def fit(self, utterances: Iterable[torch.Tensor]) -> None:
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
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for samples in utterances:
            samples = samples.unsqueeze(0).to(self.mean.device)
            everything = torch.ones_like(samples, dtype=torch.bool)
            frames = self._log_mels(samples, everything)
            lengths = torch.tensor([frames.shape[1]], device=frames.device)
            frames = (frames - self._level(frames, lengths))[0].double()
            count += len(frames)
            total = total + frames.sum(dim=0)
            squares = squares + frames.square().sum(dim=0)
        if count == 0:
            raise ValueError("no utterance to measure the features on")
        mean = total / count
        self.mean.copy_(mean)
        variance = (squares / count - mean.square()).clamp(min=1e-10)
        self.std.copy_(variance.sqrt())
