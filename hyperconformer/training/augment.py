"""Augmentation that SpeechBrain does not have, or not at a bearable price."""

import torch
import torchaudio
from torch import nn


class SpeedPerturb(nn.Module):
    """Play a batch faster or slower; "Audio Augmentation for Speech Recognition", 2015.

    SpeechBrain's class of this name resamples to ``100 * rate // percent``, which
    seldom shares a divisor with the rate: a speed of 116 % then takes 13,793 filters
    where these ratios take 25.

    Arguments
    ---------
    speed_percent : list of int
        The speeds, one of which is drawn for each batch; 100 leaves it as it is.

    Raises
    ------
    ValueError
        If there is no speed, or one is not positive.

    Example
    -------
    >>> SpeedPerturb([125])(torch.randn(2, 1000)).shape
    torch.Size([2, 800])
    """

    def __init__(self, speed_percent):
        super().__init__()
        if not speed_percent or min(speed_percent) < 1:
            raise ValueError(f"speeds must be positive percents, got {speed_percent}")
        self.speed_percent = list(speed_percent)

    def forward(self, wavs):
        """(B, N) samples in, (B, about 100 N / speed) out."""
        index = torch.randint(len(self.speed_percent), ()).item()
        return torchaudio.functional.resample(wavs, self.speed_percent[index], 100)
