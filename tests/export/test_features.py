"""The spectra of a graph are those of the features."""

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.processing.features import STFT

from hyperconformer.export.features import MatrixSTFT, exportable
from hyperconformer.model.features import FeatureExtractor, ZeroMeanSTFT


@pytest.mark.parametrize("kind", [STFT, ZeroMeanSTFT])
@pytest.mark.parametrize(
    "options",
    [
        {"n_fft": 512},
        {"n_fft": 400},
        {"n_fft": 512, "win_length": 20, "hop_length": 12.5},
        {"n_fft": 512, "center": False},
        {"n_fft": 401, "win_length": 25, "hop_length": 7},
    ],
)
def test_spectra_are_the_same(kind, options):
    stft = kind(16000, **options)
    x = torch.randn(2, 3210) + 0.5
    expected, got = stft(x), MatrixSTFT(stft)(x)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 2e-4


def test_the_mean_is_that_of_recorded_samples():
    stft = ZeroMeanSTFT(16000, n_fft=512)
    x = torch.randn(1, 1600) + 0.5
    recorded = torch.arange(1600)[None] < 1000
    x = x * recorded
    assert torch.allclose(MatrixSTFT(stft)(x, recorded), stft(x, recorded), atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"onesided": False}, {"normalized_stft": True}, {"pad_mode": "reflect"}]
)
def test_other_transforms_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        MatrixSTFT(STFT(16000, **wrong))


@pytest.mark.parametrize(
    "normalization", ["global", "level", "running_level", "utterance"]
)
def test_features_are_the_same_and_the_extractor_stays(normalization):
    extractor = FeatureExtractor(Fbank(n_mels=40), 40, normalization, 80.0, True)
    lengths = torch.tensor([0.4, 1.0])
    x = torch.randn(2, 16000)
    expected, frames = extractor(x, lengths)
    got, got_frames = exportable(extractor)(x, lengths)
    assert torch.equal(got_frames, frames)
    real = torch.arange(got.shape[1]) < frames[:, None]
    assert (got - expected)[real].abs().max() < 2e-3  # decibels
    assert type(extractor.features.compute_STFT) is ZeroMeanSTFT
