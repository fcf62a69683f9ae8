"""Reading audio: any container, rate and channel count that libsndfile knows."""

import functools
import io
import math
import pathlib
import re

import numpy as np
import scipy.signal
import soundfile
import torch

from hyperconformer.audio_file import (
    SequentialFile,
    find_truncation,
    open_audio,
    promised_frames,
)

# Below, there is no speech; above, no recorder.
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 384000
# What is read at once, all channels together.
BLOCK_SAMPLES = 2**21


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and says why."""


def read_audio(path, sample_rate_hz=16000):
    """Read a file as mono samples at the wanted rate.

    Arguments
    ---------
    path : str or pathlib.Path
        The file, or where it stands in a tar archive: ``ARCHIVE.tar:OFFSET:BYTES``.
    sample_rate_hz : int
        Wanted rate; other rates are resampled, several channels are averaged.

    Returns
    -------
    torch.Tensor
        (N,) float32 samples, full scale = 1.

    Raises
    ------
    AudioError
        If the file is missing, no audio, empty, truncated, or holds NaN or infinite
        samples.
    """
    return torch.cat(list(read_blocks(path, sample_rate_hz)))


def read_blocks(path, sample_rate_hz=16000):
    """Read a file of any length, piece by piece, as :func:`read_audio` would whole.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    sample_rate_hz : int
        Wanted rate.

    Yields
    ------
    torch.Tensor
        (N,) float32 samples.

    Raises
    ------
    AudioError
        As :func:`read_audio`, when the fault is come to.
    """
    source = _find_source(path)
    empty = True
    try:
        with open_audio(source, SequentialFile) as file:
            truncation = find_truncation(file, source)
            if truncation:
                raise ValueError(f"truncated audio: {truncation}; {_ADVICE}")
            mono = (_mono(block.T) for block in _read_all(file))
            for block in _resample_blocks(mono, file.samplerate, sample_rate_hz):
                empty = empty and len(block) == 0
                yield torch.from_numpy(block)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"{path} cannot be read as audio: {error}") from error
    except ValueError as error:
        raise AudioError(f"{path}: {error}") from error
    if empty:
        raise AudioError(f"{path}: the audio holds no samples")


_ADVICE = "copy the file again, or convert the part that is there, as with ffmpeg"


def _read_all(file):
    """Blocks of (N, channels) samples, as many as the header promises."""
    size, count = max(BLOCK_SAMPLES // file.channels, 1), 0
    try:
        # No more than there is: libsndfile clears what it does not fill.
        while frames := min(size, file.frames - count):
            block = file.read(frames, dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            count += len(block)
            yield block
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"truncated or damaged audio after {count} samples; {_ADVICE}"
        ) from error
    promised = promised_frames(file)
    if promised is not None and count < promised:
        raise ValueError(
            f"truncated audio: {count} of {file.frames} samples are there; {_ADVICE}"
        )


def _find_source(path):
    """What libsndfile shall open: a path, or the bytes of a member of an archive."""
    member = re.fullmatch(r"(.+\.tar):(\d+):(\d+)", str(path))
    file = pathlib.Path(member[1] if member else path)
    if not file.is_file():
        raise AudioError(f"no such audio file: {file}")
    if member is None:
        return file
    with open(file, "rb") as archive:
        archive.seek(int(member[2]))
        return io.BytesIO(archive.read(int(member[3])))


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
        If there are none, one is not finite, or a rate is out of range.

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
    if samples.numel() == 0:
        raise ValueError("the audio holds no samples")
    if samples.is_complex() or samples.dtype == torch.bool:
        raise ValueError(f"samples must be real numbers, got {samples.dtype}")
    if not samples.is_floating_point():
        samples = samples.float() / (torch.iinfo(samples.dtype).max + 1)
    samples = _mono(samples.float().reshape(-1, samples.shape[-1]).numpy())
    return torch.from_numpy(resample(samples, rate_hz, sample_rate_hz))


def resample(samples, rate_hz, sample_rate_hz):
    """Change the sample rate, with a filter that adds no delay.

    A polyphase filter: its cost does not grow with the numerator of the ratio of the
    rates, as that of ``torchaudio.functional.resample`` does, where a file at 44,101
    Hz takes gigabytes.

    Arguments
    ---------
    samples : numpy.ndarray
        (N,) float32.
    rate_hz : int
        Their rate.
    sample_rate_hz : int
        Wanted rate.

    Returns
    -------
    numpy.ndarray
        (ceil(N * sample_rate_hz / rate_hz),) float32.

    Raises
    ------
    ValueError
        If a rate is out of range.

    Example
    -------
    >>> resample(np.ones(441, np.float32), 44100, 16000).shape
    (160,)
    """
    up, down = _ratio(rate_hz, sample_rate_hz)
    if up == down:
        return samples
    resampled = scipy.signal.resample_poly(
        samples, up, down, window=_design_filter(max(up, down))
    )
    return resampled.astype(np.float32)


def _mono(samples):
    """(channels, N) checked and averaged."""
    if not np.isfinite(samples).all():
        raise ValueError("the audio holds samples that are NaN or infinite")
    return samples.mean(axis=0, dtype=np.float64).astype(np.float32)


def _ratio(rate_hz, sample_rate_hz):
    for rate in (rate_hz, sample_rate_hz):
        if rate != int(rate) or not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise ValueError(
                f"the sample rate must be a whole number from {MIN_RATE_HZ} to "
                f"{MAX_RATE_HZ} Hz, got {rate}"
            )
    common = math.gcd(int(rate_hz), int(sample_rate_hz))
    return int(sample_rate_hz) // common, int(rate_hz) // common


# SciPy's own default, which it would design anew for every call.
_HALF_WIDTH = 10


@functools.lru_cache(maxsize=8)
def _design_filter(factor):
    taps = 2 * _HALF_WIDTH * factor + 1
    return scipy.signal.firwin(taps, 1 / factor, window=("kaiser", 5.0))


def _resample_blocks(blocks, rate_hz, sample_rate_hz):
    """Resample a stream, each block with what the filter sees beside it."""
    up, down = _ratio(rate_hz, sample_rate_hz)
    if up == down:
        yield from blocks
        return
    # In whole periods of the filter, so that outputs fall on the same instants.
    context = math.ceil(_HALF_WIDTH * max(up, down) / up / down) * down
    buffer, done = np.zeros(0, np.float32), 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        ready = (len(buffer) - done - context) // down * down
        if ready > 0:
            end = done + ready
            resampled = resample(buffer[: end + context], rate_hz, sample_rate_hz)
            yield resampled[done * up // down : end * up // down]
            drop = max(end - context, 0)
            buffer, done = buffer[drop:], end - drop
    yield resample(buffer, rate_hz, sample_rate_hz)[done * up // down :]
