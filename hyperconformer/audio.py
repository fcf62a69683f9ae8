"""Reading audio: any container, rate and channel count that libsndfile knows."""

import pathlib

import numpy as np
import soundfile
import torch
import torchaudio


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and says why."""


def read_audio(path, sample_rate_hz=16000):
    """Read a file as mono samples at the wanted rate.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    sample_rate_hz : int
        Wanted rate; other rates are resampled, several channels are averaged.

    Returns
    -------
    torch.Tensor
        (N,) float32 samples, full scale = 1.

    Raises
    ------
    AudioError
        If the file is missing, no audio, empty, or holds NaN or infinite samples.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise AudioError(f"no such audio file: {path}")
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(f"{path} cannot be read as audio: {error}") from error
    try:
        return prepare_samples(samples.T, rate_hz, sample_rate_hz)
    except ValueError as error:
        raise AudioError(f"{path}: {error}") from error


def prepare_samples(samples, rate_hz, sample_rate_hz):
    """Check samples, mix their channels and bring them to the wanted rate.

    Arguments
    ---------
    samples : numpy.ndarray or torch.Tensor
        (N,) or (channels, N) samples, full scale = 1 if floating.
    rate_hz : int
        Their rate.
    sample_rate_hz : int
        Wanted rate.

    Returns
    -------
    torch.Tensor
        (M,) float32.

    Raises
    ------
    ValueError
        If there are none, one is not finite, or a rate is not positive.

    Example
    -------
    >>> prepare_samples(np.zeros((2, 800)), 8000, 16000).shape
    torch.Size([1600])
    """
    samples = torch.as_tensor(np.asarray(samples))
    if samples.dim() not in (1, 2):
        raise ValueError(
            f"samples must be (N,) or (channels, N), got {tuple(samples.shape)}"
        )
    if not samples.is_floating_point():
        samples = samples.float() / (torch.iinfo(samples.dtype).max + 1)
    samples = samples.float()
    if samples.dim() == 2:
        samples = samples.mean(dim=0)
    if samples.numel() == 0:
        raise ValueError("the audio holds no samples")
    if not torch.isfinite(samples).all():
        raise ValueError("the audio holds samples that are NaN or infinite")
    if rate_hz <= 0:
        raise ValueError(f"the sample rate must be positive, got {rate_hz} Hz")
    if rate_hz != sample_rate_hz:
        samples = torchaudio.functional.resample(samples, rate_hz, sample_rate_hz)
    return samples
