"""Audio that is broken in every way: a result or a clear error, never anything else."""

import io
import random
import signal
import struct
import time

import numpy as np
import pytest
import soundfile

from hyperconformer.audio import AudioError
from hyperconformer.core.words import Transcription
from hyperconformer.transcribe.offline import ASR

# Seconds of it in every run of the tests; all cases are marked slow.
BUDGET_S, CASES, LIMIT_S = 12, 2500, 60
CONTAINERS = {
    "wav": ["PCM_16", "PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"],
    "flac": ["PCM_16", "PCM_24"],
    "ogg": ["VORBIS"],
    "aiff": ["PCM_16", "FLOAT"],
    "au": ["PCM_16", "ALAW"],
    "caf": ["PCM_16"],
    "w64": ["PCM_16"],
}
RATES = [1, 999, 1000, 8000, 11025, 16000, 22050, 44100, 48000, 96000, 384000, 500000]
CHANNELS = [1, 1, 1, 2, 2, 6, 64]


@pytest.fixture(scope="module")
def asr(tiny_model):
    return ASR.from_hparams(tiny_model)


@pytest.fixture(autouse=True)
def _no_hanging():
    def stop(*_):
        raise TimeoutError(f"still busy after {LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)


def valid_file(rng):
    """Bytes of a readable file, and the end of its name."""
    extension = rng.choice(list(CONTAINERS))
    subtype = rng.choice(CONTAINERS[extension])
    rate, channels = rng.choice(RATES), rng.choice(CHANNELS)
    if subtype == "VORBIS":  # libsndfile's writer crashes beyond these
        rate, channels = rng.choice([8000, 16000, 44100]), rng.choice([1, 2])
    seconds = rng.choice([0, 1e-4, 0.05, 0.1, 0.3, 0.7])
    count = min(int(seconds * rate), 200000 // channels)
    noise = np.random.default_rng(rng.getrandbits(32))
    samples = noise.uniform(-1, 1, (count, channels)) * rng.choice([0, 1e-3, 1, 1])
    if subtype in ("FLOAT", "DOUBLE") and count:
        value = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e-45, 0.5])
        samples[rng.randrange(count), rng.randrange(channels)] = value
    file = io.BytesIO()
    try:
        soundfile.write(file, samples, rate, subtype, format=extension.upper())
    except soundfile.SoundFileError:  # not every container takes every rate
        return b"RIFF", extension
    return file.getvalue(), extension


def broken(data, rng):
    """The same bytes, or what is left of them."""
    data = bytearray(data)
    kind = rng.randrange(8)
    if kind == 0 or not data:
        return bytes(data)
    if kind == 1:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == 2:  # bits anywhere
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if kind == 3:  # bits of the header
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
    if kind == 4:  # a length that is wrong
        at = rng.choice([4, 16, 22, 24, 28, 32, 34, 40, rng.randrange(60)])
        value = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, rng.getrandbits(32)])
        data[at : at + 4] = struct.pack("<I", value)
    if kind == 5:  # noise behind a good header
        data[44:] = rng.randbytes(rng.randrange(5000))
    if kind == 6:  # noise all over
        data = bytearray(rng.randbytes(rng.randrange(2000)))
    if kind == 7:  # the same twice, or a piece missing
        at = rng.randrange(len(data))
        data = data + data if rng.random() < 0.5 else data[:at] + data[at + 37 :]
    return bytes(data)


def check_file(asr, folder, seed):
    """Recognise the file of a seed; whether there was a result."""
    rng = random.Random(seed)
    data, extension = valid_file(rng)
    path = folder / f"case{seed}.{extension}"
    path.write_bytes(broken(data, rng))
    signal.alarm(LIMIT_S)
    try:
        result = asr.transcribe_file(path)
    except AudioError as error:
        assert path.name in str(error) and len(str(error)) > len(str(path)) + 10
        return False
    finally:
        path.unlink()
    assert isinstance(result, Transcription)
    assert all(
        0 <= w.start_s < w.end_s and 0 <= w.confidence <= 1 for w in result.words
    )
    return True


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::hyperconformer.audio.AudioWarning")
def test_broken_files_for_some_seconds(asr, tmp_path):
    results, end = [], time.monotonic() + BUDGET_S
    while time.monotonic() < end or len(results) < 20:
        results.append(check_file(asr, tmp_path, len(results)))
    # The cases are of both kinds.
    assert 0 < sum(results) < len(results)


@pytest.mark.slow
def test_broken_files_by_the_thousand(asr, tmp_path):
    results = [check_file(asr, tmp_path, seed) for seed in range(CASES)]
    print(f"{len(results)} files, {sum(results)} with a result")
    assert 0.1 < sum(results) / CASES < 0.9


def test_odd_samples(asr):
    for samples, rate in (
        (np.zeros((64, 3000), np.int16), 16000),
        (np.random.randn(2, 40000) * 1e30, 384000),
        (np.random.randint(0, 255, 8000, np.uint8), 8000),
        ([0.5] * 2000, 16000),
        (np.ones((1, 1, 9)), 16000),
        (np.zeros(0), 16000),
        (np.float32(1), 16000),
        (np.full(5000, np.nan), 16000),
        (np.full(5000, 1e308), 16000),
        (np.ones(5000, bool), 16000),
        (np.zeros(5000), 1),
        (np.zeros(5000), -16000),
        (np.zeros(5000), 16000.5),
        (np.zeros(5000), float("nan")),
    ):
        try:
            assert isinstance(asr.transcribe(samples, rate), Transcription)
        except ValueError as error:
            assert len(str(error)) > 10


@pytest.mark.parametrize(
    "hours", [0.1, pytest.param(3, marks=pytest.mark.slow)], ids="{}h".format
)
def test_hours_of_silence(asr, tmp_path, hours):
    path = tmp_path / "silence.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        for _ in range(int(hours * 60)):
            file.write(np.zeros(60 * 16000, np.int16))
    signal.alarm(10 * LIMIT_S)
    result = asr.transcribe_file(path)
    assert result.text == "" and result.duration_s == hours * 3600
