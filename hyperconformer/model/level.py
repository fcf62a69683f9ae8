"""The level of speech, whole or while it goes on.

A gain shifts all log-mel features by a constant. Less the level of the recording they
are the same at any volume, but for powers below the lowest that features know.
"""

import math

import torch

from hyperconformer.core.masks import lengths_to_padding_mask
from hyperconformer.core.running_maximum import running_maximum

# How fast the running level forgets the loudest and the quietest frame: a pause of two
# seconds costs 10 dB, a loud click is forgotten in some seconds.
FORGETTING_DB_PER_S = 5.0
# Until speech was heard it is expected so far above the quietest frame.
SPEECH_ABOVE_NOISE_DB = 30.0


def utterance_level(
    log_mels: torch.Tensor, lengths: torch.Tensor, decibels: float = 10
) -> torch.Tensor:
    """Mean power of each utterance's frames and filters.

    Arguments
    ---------
    log_mels : torch.Tensor
        (B, T, F) logarithms of the power in each filter, in decibels.
    lengths : torch.Tensor
        (B,) int64 real frames.
    decibels : float
        How many of them are a factor of ten.

    Returns
    -------
    torch.Tensor
        (B, 1, 1), in decibels.

    Example
    -------
    >>> utterance_level(torch.full((1, 5, 2), -30.0), torch.tensor([5])).round().item()
    -30.0
    """
    padding = lengths_to_padding_mask(lengths, log_mels.shape[1]).unsqueeze(-1)
    powers = (log_mels * (math.log(10) / decibels)).masked_fill(padding, -math.inf)
    # In two steps: ONNX Runtime adds one number after another, and loses digits.
    total = powers.logsumexp(2, keepdim=True).logsumexp(1, keepdim=True)
    count = lengths[:, None, None] * log_mels.shape[2]
    return (total - count.log()) * (decibels / math.log(10))


def init_running_level(batch_size: int, **like) -> torch.Tensor:
    """What :func:`running_level` remembers before the first frame.

    Arguments
    ---------
    batch_size : int
        Number of streams.
    **like
        ``device`` and ``dtype`` of the tensor.

    Returns
    -------
    torch.Tensor
        (B, 2), the loudest frame, none, and the quietest, none.
    """
    return torch.tensor([-math.inf, math.inf], **like).repeat(batch_size, 1)


def running_level(
    log_mels: torch.Tensor,
    memory: torch.Tensor,
    frames_per_s: float,
    silence: float,
    decibels: float = 10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The level of speech at each frame, of this frame and those before it.

    With the mean power ``p`` of each frame's filters, the loudest and the quietest
    frame so far, and the decibels ``d`` that are forgotten in a frame::

        loudest[t] = max(p[t], loudest[t - 1] - d)
        quietest[t] = min(p[t], quietest[t - 1] + d)
        level[t] = max(loudest[t], quietest[t] + SPEECH_ABOVE_NOISE_DB)

    so that noise stays quiet before the first word and through a long pause. Digital
    silence says nothing about microphone and speaker, and is no frame here: both stay
    but for what is forgotten. Before the first sound it is the quietest frame itself.

    Arguments
    ---------
    log_mels : torch.Tensor
        (B, T, F) logarithms of the power in each filter, in decibels.
    memory : torch.Tensor
        (B, 2) from :func:`init_running_level` or the last call; not changed.
    frames_per_s : float
        Frames a second.
    silence : float
        The feature of a filter without power, in decibels.
    decibels : float
        How many of them are a factor of ten.

    Returns
    -------
    level : torch.Tensor
        (B, T, 1), in decibels.
    memory : torch.Tensor
        (B, 2) after these frames.

    Example
    -------
    >>> frames = torch.tensor([-60.0, -60.0, -10.0, -60.0]).view(1, 4, 1)
    >>> level, _ = running_level(frames, init_running_level(1), 100, -100)
    >>> level.flatten().tolist()
    [-30.0, -30.0, -10.0, -10.050000190734863]
    """
    powers = (log_mels * (math.log(10) / decibels)).logsumexp(-1)
    powers = (powers - math.log(log_mels.shape[-1])) * (decibels / math.log(10))
    # Logarithms of other runtimes are rounded otherwise.
    silent = log_mels.amax(-1) <= silence + 1e-3
    frames = torch.arange(powers.shape[1] + 1, device=powers.device)
    forgotten = frames * (FORGETTING_DB_PER_S / frames_per_s)
    loudest = torch.cat([memory[:, :1], powers.masked_fill(silent, -math.inf)], 1)
    quietest = torch.cat([memory[:, 1:], powers.masked_fill(silent, math.inf)], 1)
    loudest = running_maximum(loudest + forgotten, 1) - forgotten
    quietest = forgotten - running_maximum(forgotten - quietest, 1)
    memory = torch.stack([loudest[:, -1], quietest[:, -1]], 1)
    loudest, quietest = loudest[:, 1:], quietest[:, 1:]
    quietest = torch.where(quietest.isinf(), powers, quietest)
    return torch.maximum(loudest, quietest + SPEECH_ABOVE_NOISE_DB)[..., None], memory
