"""Augmentation that SpeechBrain lacks, or computes too slowly."""

import math
from collections.abc import Sequence

import torch
import torchaudio
from speechbrain.augment.freq_domain import SpectrogramDrop
from torch import nn


class SpeedPerturb(nn.Module):
    """Play a batch faster or slower; "Audio Augmentation for Speech Recognition", 2015.

    SpeechBrain's class of this name resamples to ``100 * rate // percent``, which
    seldom shares a divisor with the rate. A speed of 116 % then needs 13,793 filters;
    the ratios here need 25.

    Arguments
    ---------
    speed_percent : list of int
        Speeds in percent; one is drawn for each batch. 100 changes nothing.

    Raises
    ------
    ValueError
        If there is no speed, or one is not positive.

    Example
    -------
    >>> SpeedPerturb([125])(torch.randn(2, 1000)).shape
    torch.Size([2, 800])
    """

    def __init__(self, speed_percent: Sequence[int]):
        super().__init__()
        if not speed_percent or min(speed_percent) < 1:
            raise ValueError(f"speeds must be positive percents, got {speed_percent}")
        self.speed_percent = list(speed_percent)

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Map (B, N) samples to (B, about 100 N / speed) samples."""
        index = int(torch.randint(len(self.speed_percent), ()))
        return torchaudio.functional.resample(wavs, self.speed_percent[index], 100)


class RandomGain(nn.Module):
    """Change the level of each utterance by a random gain.

    Arguments
    ---------
    lowest_db, highest_db : float
        Gains are drawn uniformly from this interval; 0 and 0 change nothing.

    Raises
    ------
    ValueError
        If they do not form an interval.

    Example
    -------
    >>> RandomGain(-20, -20)(torch.ones(2, 3))[0].tolist()
    [0.10000000149011612, 0.10000000149011612, 0.10000000149011612]
    """

    def __init__(self, lowest_db: float, highest_db: float):
        super().__init__()
        if not -math.inf < lowest_db <= highest_db < math.inf:
            raise ValueError(
                f"gains need a lowest and a highest dB, got {lowest_db}, {highest_db}"
            )
        self.lowest_db, self.highest_db = lowest_db, highest_db

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Map (B, N) samples to (B, N) samples."""
        if self.lowest_db == self.highest_db == 0:
            return wavs
        gains_db = torch.empty(len(wavs), 1, device=wavs.device)
        gains_db.uniform_(self.lowest_db, self.highest_db)
        return wavs * 10 ** (gains_db / 20)


class Telephone(nn.Module):
    """Send a batch through a telephone: 300 to 4000 Hz, and 8 bits of mu-law.

    As ITU-T G.711: 8000 samples per second, companded with mu = 255. Silence becomes
    1e-4, since torchaudio's mu-law has no code for it.

    Arguments
    ---------
    probability : float
        Probability for each batch, from 0 to 1.
    sample_rate_hz : int
        Sample rate of input and output.

    Raises
    ------
    ValueError
        If the probability is outside [0, 1], or the rate is below the telephone's.

    Example
    -------
    >>> Telephone(1.0, 16000)(torch.randn(2, 1000)).shape
    torch.Size([2, 1000])
    """

    RATE_HZ = 8000
    LOWEST_HZ = 300.0
    LEVELS = 256

    def __init__(self, probability: float, sample_rate_hz: int):
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability lies in [0, 1], got {probability}")
        if sample_rate_hz < self.RATE_HZ:
            raise ValueError(
                f"a telephone needs {self.RATE_HZ} Hz or more, got {sample_rate_hz}"
            )
        self.probability = probability
        self.sample_rate_hz = sample_rate_hz

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Map (B, N) samples between -1 and 1 to (B, N) samples."""
        if torch.rand(()).item() >= self.probability:
            return wavs
        narrow = torchaudio.functional.resample(wavs, self.sample_rate_hz, self.RATE_HZ)
        narrow = torchaudio.functional.highpass_biquad(
            narrow, self.RATE_HZ, self.LOWEST_HZ
        )
        sent = torchaudio.functional.mu_law_encoding(narrow.clamp(-1, 1), self.LEVELS)
        heard = torchaudio.functional.mu_law_decoding(sent, self.LEVELS)
        wide = torchaudio.functional.resample(heard, self.RATE_HZ, self.sample_rate_hz)
        return wide[:, : wavs.shape[1]]


class TimeMask(nn.Module):
    """Mask stretches of time; "SpecAugment", Park et al., Interspeech 2019, section 2.

    SpeechBrain's ``SpectrogramDrop`` lacks the paper's bound p: no mask is wider than
    a share of the frames. Without it, a single short word is masked whole.

    Arguments
    ---------
    frames : int
        Masks have 1 to ``frames`` - 1 frames, drawn for each utterance.
    count : int
        Masks of an utterance; they may overlap.
    largest_share : float
        Bound of a mask's width, as a share of the batch's frames, in (0, 1].

    Raises
    ------
    ValueError
        If ``frames`` is below 2, ``count`` is negative, or the share is outside (0, 1].

    Example
    -------
    >>> masked = TimeMask(30, 2, 0.2)(torch.ones(8, 50, 80))
    >>> bool(masked[..., 0].sum(1).min() >= 50 - 2 * 9)
    True
    """

    def __init__(self, frames: int, count: int, largest_share: float = 1.0):
        super().__init__()
        if frames < 2 or count < 0 or not 0 < largest_share <= 1:
            raise ValueError(
                "time masks need frames >= 2, a count >= 0 and a share in (0, 1], got "
                f"{frames}, {count}, {largest_share}"
            )
        self.frames, self.count, self.largest_share = frames, count, largest_share

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, T, F) features, mean 0, to the same with zeros, in place."""
        frames = min(self.frames, int(self.largest_share * features.shape[1]))
        if frames < 2:  # as short as that, nothing may be masked
            return features
        return SpectrogramDrop(1, frames, self.count, self.count)(features)


class VocalTractWarp(nn.Module):
    """Change each utterance's vocal tract length.

    "Vocal Tract Length Perturbation (VTLP) improves speech recognition", Jaitly and
    Hinton, 2013, equation 1: frequencies below 4800 Hz are multiplied by a random
    factor per utterance; higher ones are stretched so that the highest frequency stays
    fixed. Unlike speed perturbation, it keeps the tempo.

    Arguments
    ---------
    largest : float
        Factors are drawn from 1 - largest to 1 + largest; 0 changes nothing.
    num_features : int
        Number of mel filters, spaced as in SpeechBrain's Fbank.
    sample_rate_hz : int
        Sample rate of the audio.

    Raises
    ------
    ValueError
        If ``largest`` is not in [0, 0.5].

    Example
    -------
    >>> VocalTractWarp(0.1, 80, 16000)(torch.randn(2, 50, 80)).shape
    torch.Size([2, 50, 80])
    """

    HIGHEST_SCALED_HZ = 4800.0

    def __init__(self, largest: float, num_features: int, sample_rate_hz: int):
        super().__init__()
        if not 0 <= largest <= 0.5:
            raise ValueError(f"vocal tracts warp by 0 to 0.5, got {largest}")
        self.largest = largest
        self.num_features = num_features
        self.nyquist_hz = sample_rate_hz / 2

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (B, T, F) log-mel features to the same shape."""
        if self.largest == 0:
            return features
        spread = 2 * torch.rand(len(features), 1, device=features.device) - 1
        return self.warp(features, 1 + self.largest * spread)

    def warp(self, features: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Read each filter at its frequency in the warped spectrum.

        Arguments
        ---------
        features : torch.Tensor
            (B, T, F) log-mel features.
        factors : torch.Tensor
            (B, 1) factors.

        Returns
        -------
        torch.Tensor
            (B, T, F), interpolated between neighbouring filters.
        """
        filters = torch.arange(self.num_features, device=features.device)
        step_mel = _mel(torch.tensor(self.nyquist_hz)) / (self.num_features + 1)
        centres_hz = _hz((filters + 1) * step_mel)
        places = _mel(self._warped_hz(centres_hz, factors)) / step_mel - 1
        places = places.clamp(0, self.num_features - 1).to(features.dtype)
        below = places.floor().long().clamp(max=self.num_features - 2)
        part = (places - below).unsqueeze(1)  # (B, 1, F)
        below = below.unsqueeze(1).expand_as(features)
        return torch.lerp(
            features.gather(-1, below), features.gather(-1, below + 1), part
        )

    def _warped_hz(self, hz, factors):
        top, nyquist = self.HIGHEST_SCALED_HZ * factors.clamp(max=1), self.nyquist_hz
        slope = (nyquist - top) / (nyquist - top / factors)
        return torch.where(
            hz <= top / factors, hz * factors, nyquist - slope * (nyquist - hz)
        )


def _mel(hz):
    return 2595 * torch.log10(1 + hz / 700)


def _hz(mel):
    return 700 * (10 ** (mel / 2595) - 1)
