"""Reading audio of any kind, and refusing what is none."""

import io
import warnings

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.audio import (
    AudioError,
    AudioWarning,
    as_samples,
    prepare_samples,
    read_audio,
    read_blocks,
)


def tone(rate_hz, seconds=0.5):
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate_hz * seconds)) / rate_hz)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_any_rate_comes_out_at_the_wanted_one(tmp_path, rate_hz, extension):
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, tone(rate_hz), rate_hz)
    samples = read_audio(path, 16000)
    assert abs(len(samples) - 8000) <= 1 and samples.dtype == torch.float32
    spectrum = np.abs(np.fft.rfft(samples.numpy()[:8000]))
    assert spectrum.argmax() * 2 == 440


def test_channels_are_averaged(tmp_path):
    path = tmp_path / "a.wav"
    left, right = tone(16000), -0.5 * tone(16000)
    soundfile.write(path, np.stack([left, right], axis=1), 16000)
    assert np.abs(read_audio(path).numpy() - 0.25 * left).max() < 1e-3


def test_integers_are_scaled():
    samples = prepare_samples(
        np.array([-32768, 0, 16384], dtype=np.int16), 16000, 16000
    )
    assert samples.tolist() == [-1.0, 0.0, 0.5]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(AudioError, match="no such audio file.*gone.wav"):
        read_audio(tmp_path / "gone.wav")
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"RIFF" + bytes(range(200)))
    with pytest.raises(AudioError, match="garbage.wav cannot be read"):
        read_audio(garbage)
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0), 16000)
    with pytest.raises(AudioError, match="empty.wav.*no samples"):
        read_audio(empty)
    nan = tmp_path / "nan.wav"
    soundfile.write(nan, np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="nan.wav.*NaN"):
        read_audio(nan)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="sample rate.*got 0"):
        prepare_samples(np.zeros(10), 0, 16000)
    with pytest.raises(ValueError, match=r"\(channels, N\)"):
        prepare_samples(np.zeros((2, 2, 2)), 16000, 16000)


@pytest.mark.parametrize("rate_hz", [1000, 8000, 11025, 22050, 44101, 48000, 384000])
def test_a_file_read_in_blocks_is_the_file_read_whole(tmp_path, monkeypatch, rate_hz):
    path = tmp_path / "a.wav"
    noise = np.random.default_rng(0).uniform(-1, 1, (int(3.3 * rate_hz), 2))
    soundfile.write(path, noise, rate_hz, subtype="FLOAT")
    whole = read_audio(path)
    monkeypatch.setattr("hyperconformer.audio.BLOCK_SAMPLES", rate_hz // 3)
    blocks = list(read_blocks(path))
    assert len(blocks) >= 2
    # The same products are summed in the same order: only float32 rounds.
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6)
    assert len(whole) == -(-len(noise) * 16000 // rate_hz)
    direct = prepare_samples(noise.T.astype(np.float32), rate_hz, 16000)
    assert torch.allclose(whole, direct, atol=1e-6)


@pytest.mark.parametrize("rate_hz", [1, 999, 384001, 2**31 - 1])
def test_rates_that_no_recorder_has_are_refused(tmp_path, rate_hz):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), rate_hz)
    with pytest.raises(AudioError, match=f"a.wav: the sample rate.*got {rate_hz}"):
        read_audio(path)


def test_many_channels_are_averaged(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.tile(np.arange(64) / 64, (1600, 1)), 16000, "FLOAT")
    assert torch.allclose(read_audio(path), torch.full((1600,), 31.5 / 64))


def test_numbers_that_are_no_samples_are_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        prepare_samples(np.full(10, 1e39), 16000, 16000)
    with pytest.raises(ValueError, match="real numbers"):
        prepare_samples(np.zeros(10, complex), 16000, 16000)
    with pytest.raises(ValueError, match="no samples"):
        prepare_samples(np.zeros((2, 0)), 16000, 16000)


PCM = np.array([-32768, -20000, 0, 16384, 32767], dtype=np.int16)


@pytest.mark.parametrize(
    "samples",
    [
        PCM,
        PCM.astype(">i2"),
        PCM[::-1][::-1],
        PCM.astype(np.int32) * 65536,
        PCM / 32768,
        PCM.astype(np.float32) / 32768,
        torch.from_numpy(PCM),
        torch.from_numpy(PCM / 32768).requires_grad_(),
        (PCM / 32768).tolist(),
    ],
    ids=lambda samples: f"{type(samples).__name__} {getattr(samples, 'dtype', '')}",
)
def test_every_type_of_samples_has_its_full_scale(samples):
    expected = [-1.0, -20000 / 32768, 0.0, 0.5, 32767 / 32768]
    assert as_samples(samples).tolist() == expected
    assert prepare_samples(samples, 16000, 16000).tolist() == expected


def test_coarse_types_have_their_full_scale_too():
    expected = [-1.0, -0.5, 0.0, 0.5]
    for samples in (
        np.array([0, 64, 128, 192], np.uint8),  # as in WAV files
        torch.tensor([-128, -64, 0, 64], dtype=torch.int8),
        np.array(expected, np.float16),
        torch.tensor(expected, dtype=torch.bfloat16),
    ):
        assert as_samples(samples).tolist() == expected
    silence = as_samples(torch.full((3,), 128, dtype=torch.uint8))
    assert silence.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "samples",
    [
        PCM.tolist(),
        PCM.astype(np.int64),
        PCM.view(np.uint16),
        torch.from_numpy(PCM).long(),
        np.zeros(5, bool),
        np.zeros(5, complex),
        np.array(["a", "b"]),
        PCM.tobytes(),
        [None, 1.0],
    ],
)
def test_types_without_a_scale_are_refused(samples):
    for convert in (as_samples, lambda x: prepare_samples(x, 16000, 16000)):
        with pytest.raises(ValueError, match="real numbers.*; got .*numpy.int16"):
            convert(samples)


def test_small_values_in_large_integers_are_refused_or_warned_of():
    with pytest.raises(ValueError, match="int32.*none is beyond 32768.*16-bit"):
        prepare_samples(PCM.astype(np.int32), 16000, 16000)
    with pytest.warns(AudioWarning, match=r"2\*\*23.*24-bit.*multiply them by 256"):
        prepare_samples(PCM.astype(np.int32) * 256, 16000, 16000)
    with pytest.warns(AudioWarning, match=r"16-bit.*multiply them by 65536"):
        as_samples(PCM.astype(np.int32))  # a piece of a stream may be this quiet
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_samples(np.zeros(10, np.int32), 16000, 16000)
        as_samples(PCM.astype(np.int32) * 256)
        as_samples(np.zeros(0, np.float32))


def test_floats_that_hold_integers_are_warned_of(tmp_path):
    for samples in (PCM.astype(np.float32), torch.from_numpy(PCM).double()):
        with pytest.warns(AudioWarning, match="beyond.*divide them by 32768"):
            prepare_samples(samples, 16000, 16000)
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.tile(PCM.astype(np.float32), 100), 16000, "FLOAT")
    with pytest.warns(AudioWarning, match="loud.wav: .*divide them by 32768"):
        read_audio(path)
    with warnings.catch_warnings():  # a codec's overshoot is no mistake
        warnings.simplefilter("error")
        prepare_samples(1.5 * tone(16000), 16000, 16000)


def test_channels_that_cancel_each_other_are_refused(tmp_path):
    left = tone(16000)
    stereo = np.stack([left, -left])
    with pytest.raises(ValueError, match="the channels cancel each other"):
        prepare_samples(stereo, 16000, 16000)
    path = tmp_path / "turned.wav"
    soundfile.write(path, stereo.T, 16000)
    with pytest.raises(AudioError, match="turned.wav: the channels cancel each other"):
        read_audio(path)
    generator = np.random.default_rng(0)
    for samples in (
        np.stack([left, 0 * left]),
        np.zeros((2, 100)),
        0.1 * generator.standard_normal((2, 16000)),
    ):
        prepare_samples(samples, 16000, 16000)


def test_samples_without_a_header_are_refused(tmp_path):
    path = tmp_path / "speech.raw"
    path.write_bytes(PCM.tobytes())
    with pytest.raises(AudioError, match="speech.raw cannot be read.*without a header"):
        read_audio(path)


def test_a_file_is_named_by_its_path(tmp_path):
    with pytest.raises(AudioError, match="named by its path, got <_io.BytesIO"):
        read_audio(io.BytesIO(b""))


def test_transposed_channels_are_refused():
    with pytest.raises(ValueError, match=r"\(800, 2\).*transpose"):
        prepare_samples(np.zeros((800, 2)), 16000, 16000)
