"""Reading audio: any container, rate and channel count that libsndfile knows."""

import functools
import io
import math
import os
import pathlib
import re
import warnings

import numpy as np
import scipy.signal
import soundfile
import torch

from hyperconformer.core.audio_file import (
    SequentialFile,
    find_truncation,
    open_audio,
    promised_frames,
)
from hyperconformer.core.segments import parse_segment
from hyperconformer.core.store import is_stored, read_bytes

# Below, there is no speech; above, no recorder.
MIN_RATE_HZ, MAX_RATE_HZ = 1000, 384000
# What is read at once, all channels together.
BLOCK_SAMPLES = 2**21
# Floats: a lossy codec overshoots full scale = 1 by less; integers do not stop there.
MAX_PEAK = 2.0
# The mean of the channels has less of their power where they cancel each other.
CANCELLED = 1e-3
# 32-bit integers: a recording below holds values of 16 bits, of 24 bits or silence.
PEAK_16_BITS, PEAK_24_BITS = 2**15, 2**23


class AudioError(ValueError):
    """An audio file that cannot be used; the message names the file and says why."""


class AudioWarning(UserWarning):
    """Samples that can be used, but are likely not at the level that they seem."""


def read_audio(path, sample_rate_hz=16000):
    """Read a file as mono samples at the wanted rate.

    Arguments
    ---------
    path : str or pathlib.Path
        The file, a part of it (``FILE#t=START,END``, in seconds), or where it stands in
        a tar archive (``ARCHIVE.tar:OFFSET:BYTES``). The file or archive may be in an
        object store (``s3://BUCKET/KEY``).
    sample_rate_hz : int
        Wanted rate; other rates are resampled, several channels are averaged.

    Returns
    -------
    torch.Tensor
        (N,) float32 samples, full scale = 1.

    Raises
    ------
    AudioError
        If the file is missing, no audio, empty, truncated, holds NaN or infinite
        samples, or its channels cancel each other.
    hyperconformer.core.store.StoreError
        If an object store cannot be read.
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
    AudioError, hyperconformer.core.store.StoreError
        As :func:`read_audio`, when the fault is come to.
    """
    if not isinstance(path, str | os.PathLike):
        raise AudioError(f"an audio file is named by its path, got {path!r}")
    segment = parse_segment(path)
    source = _find_source(segment.file)
    empty, peak = True, 0.0
    try:
        with open_audio(source, SequentialFile) as file:
            truncation = find_truncation(file, source)
            if truncation:
                raise ValueError(f"truncated audio: {truncation}; {_ADVICE}")
            first, frames = segment.frames(file.frames, file.samplerate)
            if first:
                file.seek(first)
            mono = _mix(_read(file, frames))
            for block in _resample_blocks(mono, file.samplerate, sample_rate_hz):
                empty = empty and len(block) == 0
                if peak <= MAX_PEAK:
                    peak = np.abs(block).max(initial=0.0)
                    check_peak(peak, f"{path}: ")
                yield torch.from_numpy(block)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"{path} cannot be read as audio: {error}") from error
    except ValueError as error:
        raise AudioError(f"{path}: {error}") from error
    if empty:
        raise AudioError(f"{path}: the audio holds no samples")


_ADVICE = "copy the file again, or convert the part that is there, as with ffmpeg"


def _mix(blocks):
    """The mean of the channels, block by block; refused at the end if they cancel."""
    channels_power = mono_power = 0.0
    for block in blocks:
        mono = _mono(block.T)
        if block.shape[1] > 1:
            channels_power += _power(block)
            mono_power += block.shape[1] * _power(mono)
        yield mono
    _check_channels(mono_power, channels_power)


def _power(samples):
    return float(np.square(samples, dtype=np.float64).sum())


def _check_channels(mono_power, channels_power):
    """Refuse channels of opposite phase: their mean loses the sound that they share."""
    if mono_power < CANCELLED * channels_power:
        raise ValueError(
            "the channels cancel each other when they are averaged, as where a cable "
            "turns the phase of one: give one channel"
        )


def _read(file, frames):
    """Blocks of (N, channels) samples, all ``frames`` that the header promises."""
    size, count = max(BLOCK_SAMPLES // file.channels, 1), 0
    try:
        # No more than there is: libsndfile clears what it does not fill.
        while wanted := min(size, frames - count):
            block = file.read(wanted, dtype="float32", always_2d=True)
            if len(block) == 0:
                break
            count += len(block)
            yield block
    except soundfile.SoundFileError as error:
        raise ValueError(
            f"truncated or damaged audio after {count} samples; {_ADVICE}"
        ) from error
    promised = promised_frames(file) if frames == file.frames else frames
    if promised is not None and count < promised:
        raise ValueError(
            f"truncated audio: {count} of {frames} samples are there; {_ADVICE}"
        )


def _find_source(path):
    """What libsndfile shall open: a path, or the bytes of a member of an archive."""
    member = re.fullmatch(r"(.+\.tar):(\d+):(\d+)", str(path))
    if is_stored(path):
        url, *place = member.groups() if member else [path]
        try:
            return io.BytesIO(read_bytes(url, *map(int, place)))
        except FileNotFoundError as error:
            raise AudioError(f"no such audio file: {url}") from error
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
        (N,) or (channels, N) samples of a type that :func:`as_samples` takes.
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
        If there are none, their type or shape is none of audio, 32-bit integers hold
        16-bit values, one is not finite, channels cancel each other, or a rate is out
        of range.

    Example
    -------
    >>> prepare_samples(np.zeros((2, 800)), 8000, 16000).shape
    torch.Size([1600])
    """
    samples = as_samples(samples, whole=True).numpy()
    if samples.ndim not in (1, 2):
        raise ValueError(f"samples must be (N,) or (channels, N), got {samples.shape}")
    if samples.size == 0:
        raise ValueError("the audio holds no samples")
    samples = samples.reshape(-1, samples.shape[-1])
    if len(samples) > samples.shape[1]:
        raise ValueError(
            f"samples must be (channels, N), got {samples.shape}, which is more "
            "channels than samples: transpose them"
        )
    mono = _mono(samples)
    if len(samples) > 1:
        _check_channels(len(samples) * _power(mono), _power(samples))
    return torch.from_numpy(resample(mono, rate_hz, sample_rate_hz))


def as_samples(samples, whole=False):
    """Samples of any type that audio comes in, with full scale = 1.

    Signed integers of 8, 16 and 32 bits have the full scale of their type; unsigned
    ones of 8 bits are centred at 128, as in WAV files. Other integers have no scale
    that everybody agrees on and are refused. Floating samples stay as they are; beyond
    +-2 there is a warning, as integers that were merely converted look so.

    Arguments
    ---------
    samples : numpy.ndarray or torch.Tensor
        Any shape, or what numpy makes an array of.
    whole : bool
        Whether this is a whole recording, so that its peak says in which of the ways
        32-bit integers are used; a piece of a stream may be silent.

    Returns
    -------
    torch.Tensor
        float32 of the same shape, a copy on the CPU.

    Raises
    ------
    ValueError
        If the type is none of these, or 32-bit integers of a whole recording hold
        16-bit values.

    Example
    -------
    >>> as_samples(torch.tensor([16384], dtype=torch.int16)).tolist()
    [0.5]
    >>> as_samples(np.array([0, 128, 192], dtype=np.uint8)).tolist()
    [-1.0, 0.0, 0.5]
    """
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        if samples.dtype == torch.bfloat16:  # numpy has none
            samples = samples.float()
    samples = np.asarray(samples)
    kind, peak = samples.dtype.kind, _peak(samples)
    if kind == "f":
        check_peak(peak)
        with np.errstate(over="ignore"):  # infinite ones are refused later
            return torch.from_numpy(samples.astype(np.float32))
    if samples.dtype.name in ("int8", "int16", "int32"):
        full_scale = 2 ** (8 * samples.dtype.itemsize - 1)
        if samples.dtype.name == "int32" and peak > 0:
            _check_bits(peak, whole)
        return torch.from_numpy(np.asarray(samples / full_scale, np.float32))
    if samples.dtype.name == "uint8":
        return torch.from_numpy(np.asarray(samples / 128 - 1, np.float32))
    raise ValueError(
        f"samples must be real numbers, floating with full scale = 1, or int8, int16, "
        f"int32 or uint8 with that of their type; got {samples.dtype}. 16-bit values "
        "of another type: numpy.asarray(samples, numpy.int16)"
    )


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


def _peak(samples):
    """The largest magnitude, 0 if there are no samples or they are no numbers."""
    if samples.size == 0 or samples.dtype.kind not in "if":
        return 0
    # Of the extremes, as the magnitude of the lowest integer does not fit its type.
    return max(abs(float(samples.min())), abs(float(samples.max())))


def check_peak(peak, where=""):
    """Warn of floating samples that look like integers which were merely converted.

    Arguments
    ---------
    peak : float
        Their largest magnitude.
    where : str
        What the warning begins with. Python shows the same words only once.
    """
    if np.isfinite(peak) and peak > MAX_PEAK:
        warnings.warn(
            f"{where}floating samples have full scale = 1, but some are beyond "
            f"+-{MAX_PEAK:g}: if they are 16-bit values, divide them by 32768",
            AudioWarning,
            stacklevel=3,
        )


def _check_bits(peak, whole):
    """Refuse 16-bit values in 32-bit integers; warn of those that may be of 24 bits."""
    if whole and peak <= PEAK_16_BITS:
        raise ValueError(
            f"int32 samples have full scale = 2**31, but none is beyond {peak:g}: if "
            "they are 16-bit values, convert them: numpy.asarray(samples, numpy.int16)"
        )
    if peak <= (PEAK_24_BITS if whole else PEAK_16_BITS):
        bits = 24 if whole else 16
        warnings.warn(
            f"int32 samples have full scale = 2**31, but none is beyond 2**{bits - 1}: "
            f"if they are {bits}-bit values, multiply them by {2 ** (32 - bits)}",
            AudioWarning,
            stacklevel=3,
        )


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


class Resampler:
    """Changes the rate of a stream, as :func:`resample` would that of the whole.

    Arguments
    ---------
    rate_hz : int
        The stream's rate.
    sample_rate_hz : int
        Wanted rate.

    Raises
    ------
    ValueError
        If a rate is out of range.

    Example
    -------
    >>> resampler = Resampler(24000, 16000)
    >>> pieces = [resampler.push(np.zeros(100, np.float32)) for _ in range(3)]
    >>> [len(piece) for piece in [*pieces, resampler.finish()]]
    [56, 66, 68, 10]
    """

    def __init__(self, rate_hz, sample_rate_hz):
        self.rates = rate_hz, sample_rate_hz
        up, down = self.up, self.down = _ratio(rate_hz, sample_rate_hz)
        # In whole periods of the filter, so that outputs fall on the same instants.
        self.context = math.ceil(_HALF_WIDTH * max(up, down) / up / down) * down
        self.buffer, self.done = np.zeros(0, np.float32), 0

    def push(self, samples):
        """Take the next (N,) float32 samples; give those that no later one changes."""
        if self.up == self.down:
            return samples
        self.buffer = np.concatenate([self.buffer, samples])
        ready = (len(self.buffer) - self.done - self.context) // self.down * self.down
        if ready <= 0:
            return np.zeros(0, np.float32)
        end = self.done + ready
        out = self._resample(self.buffer[: end + self.context], end)
        drop = max(end - self.context, 0)
        self.buffer, self.done = self.buffer[drop:], end - drop
        return out

    def finish(self):
        """The samples that are left when no more come."""
        return self._resample(self.buffer) if len(self.buffer) else self.buffer

    def _resample(self, samples, end=None):
        begin = self.done * self.up // self.down
        end = None if end is None else end * self.up // self.down
        return resample(samples, *self.rates)[begin:end]


def _resample_blocks(blocks, rate_hz, sample_rate_hz):
    """Resample a stream, each block with what the filter sees beside it."""
    resampler = Resampler(rate_hz, sample_rate_hz)
    for block in blocks:
        if len(resampled := resampler.push(block)) > 0:
            yield resampled
    if len(rest := resampler.finish()) > 0:
        yield rest
