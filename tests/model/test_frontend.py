"""Front end and features respect the length of each utterance."""

import copy

import pytest
import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models import convolution
from speechbrain.processing.features import STFT
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from hyperconformer import ConvolutionFrontEnd
from hyperconformer.model.features import (
    NORMALIZATIONS,
    FeatureExtractor,
    ZeroMeanSTFT,
)
from tests.goldens import relative_error

SHAPES = {
    "recipe": {
        "num_blocks": 2,
        "num_layers_per_block": 1,
        "out_channels": (64, 32),
        "kernel_sizes": (3, 3),
        "strides": (2, 2),
        "residuals": (False, False),
    },
    "wide": {
        "num_blocks": 3,
        "num_layers_per_block": 2,
        "out_channels": (8, 6, 4),
        "kernel_sizes": (3, 5, 3),
        "strides": (2, 1, 2),
        "residuals": (False, True, True),
    },
}


def build(cls, shape, **options):
    options = {"dropout": 0.0, **SHAPES[shape], **options}
    return cls(input_shape=(8, 10, 20), **options).eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_one_utterance_equals_speechbrain(shape):
    stock = build(convolution.ConvolutionFrontEnd, shape)
    ours = build(ConvolutionFrontEnd, shape)
    ours.load_state_dict(stock.state_dict(), strict=True)
    for frames in (40, 41, 42, 43):
        x = torch.randn(2, frames, 20)
        assert (stock(x) - ours(x)).abs().max() <= 2e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_alone_with_nan_in_the_padding(shape):
    cnn = build(ConvolutionFrontEnd, shape)
    x = torch.randn(5, 51, 20)
    lengths = torch.tensor([51, 50, 49, 33, 24])
    mask = torch.arange(51) >= lengths[:, None]
    dirty = x.masked_fill(mask.unsqueeze(-1), float("nan")).requires_grad_()
    y, out_lengths = cnn(dirty, lengths)
    total = 0.0
    for row, length in enumerate(lengths):
        alone = cnn(x[row : row + 1, :length])[0]
        assert out_lengths[row] == alone.shape[0]
        got = y[row, : out_lengths[row]]
        assert (got - alone).abs().max() <= 1e-5
        total = total + got.square().sum()
    total.backward()
    assert torch.isfinite(dirty.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in cnn.parameters())


@pytest.mark.parametrize("causal", [False, True], ids=["reflecting", "causal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_equal_the_layers(monkeypatch, shape, causal):
    """Where there is a compiler; else both are the layers one by one."""
    cnn = build(ConvolutionFrontEnd, shape, causal=causal)
    lengths = torch.tensor([103, 61, 102])
    x = torch.randn(3, 103, 20, requires_grad=True)
    results = []
    for backend, module, features in (
        ("", cnn, x),
        ("torch", cnn, x),
        ("torch", copy.deepcopy(cnn).double(), x.double()),
    ):
        monkeypatch.setenv("HYPERCONFORMER_BACKEND", backend)
        y, counts = module(features, lengths)
        real = torch.arange(y.shape[1]) < counts[:, None]
        tensors = [features, *module.parameters()]
        gradients = torch.autograd.grad(y[real].square().sum(), tensors)
        results.append([y[real], *gradients])
    kernels, layers, exact = results
    # Through layers on layers, chance decides which tensor is hit how much.
    allowed = 2 * max(map(relative_error, layers, exact))
    assert max(map(relative_error, kernels, exact)) <= allowed


LISTENERS = {
    "forward": lambda module, call: module.register_forward_hook(call),
    "pre": lambda module, call: module.register_forward_pre_hook(call),
    "backward": lambda module, call: module.register_full_backward_hook(call),
    "global": lambda module, call: register_module_forward_hook(call),
}


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("name", ["norm_0", "norm_0.norm", "act_0"])
def test_who_listens_is_called(name, listener):
    cnn, called = build(ConvolutionFrontEnd, "recipe"), []
    plain = cnn(x := torch.randn(1, 40, 20, requires_grad=True))
    module = cnn.get_submodule(f"convblock_0.convs.{name}")
    handle = LISTENERS[listener](module, lambda *a: called.append(a[0]) and None)
    heard = cnn(x)
    heard.sum().backward()
    handle.remove()
    assert module in called
    assert relative_error(heard, plain) < 1e-5


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


def replace(module, new):
    parent, _, name = module.rpartition(".")
    return lambda cnn: setattr(cnn.get_submodule(parent), name, new)


def patch(cnn):
    rectifier = cnn.get_submodule("convblock_1.convs.act_0")
    usual = rectifier.forward
    rectifier.forward = lambda x: 2 * usual(x)


NORM = "convblock_0.convs.norm_0.norm"


@pytest.mark.parametrize(
    "change",
    [
        replace(NORM, Doubled([10, 64])),
        replace(NORM, nn.Identity()),
        replace(NORM, nn.LayerNorm([10, 64], bias=False)),
        replace("convblock_0.convs.act_0", nn.GELU()),
        patch,
    ],
    ids=["subclass", "identity", "no bias", "activation", "patched"],
)
def test_what_somebody_has_replaced_is_called(monkeypatch, change):
    cnn, x = build(ConvolutionFrontEnd, "recipe"), torch.randn(1, 40, 20)
    nn.init.ones_(cnn.get_submodule(NORM).bias)
    plain = cnn(x)
    change(cnn)
    changed = cnn(x)
    assert relative_error(changed, plain) > 1e-3
    monkeypatch.setenv("HYPERCONFORMER_BACKEND", "torch")
    assert relative_error(changed, cnn(x)) < 1e-5


def test_too_short_is_refused():
    cnn = build(ConvolutionFrontEnd, "recipe")
    with pytest.raises(ValueError, match="1 frames is too short"):
        cnn(torch.randn(2, 9, 20), torch.tensor([9, 1]))


def test_padding_other_than_same_is_refused():
    with pytest.raises(ValueError, match="same"):
        ConvolutionFrontEnd(
            input_shape=(8, 10, 20), padding="valid", **SHAPES["recipe"]
        )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_features_of_a_batch_equal_those_of_each_utterance(normalization):
    extractor = FeatureExtractor(Fbank(n_mels=40), 40, normalization).eval()
    utterances = [torch.randn(n) for n in (16000, 15999, 8079, 8080, 4321)]
    extractor.fit(utterances)
    counts = torch.tensor([len(u) for u in utterances])
    wavs = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    features, lengths = extractor(wavs, counts / 16000)
    for row, utterance in enumerate(utterances):
        alone, own = extractor(utterance.unsqueeze(0))
        assert own[0] == alone.shape[1] == lengths[row]
        assert (features[row, : lengths[row]] - alone[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("filling", [5.0, float("nan"), float("inf")])
def test_features_do_not_see_what_stands_in_the_padding(normalization, filling):
    extractor = FeatureExtractor(Fbank(n_mels=40), 40, normalization).eval()
    wavs, counts = torch.randn(3, 16000), torch.tensor([16000, 12345, 4321])
    for row, count in enumerate(counts):
        wavs[row, count:] = filling
    given = wavs.clone()
    features, lengths = extractor(wavs, counts / 16000)
    assert torch.equal(wavs.nan_to_num(), given.nan_to_num())
    for row, count in enumerate(counts):
        alone, _ = extractor(wavs[row : row + 1, :count])
        assert (features[row, : lengths[row]] - alone[0]).abs().max() <= 1e-4
    assert torch.isfinite(features).all()


def test_utterance_normalisation_and_an_unknown_one():
    extractor = FeatureExtractor(Fbank(n_mels=40), 40, "utterance")
    x, lengths = extractor(torch.randn(2, 16000), torch.tensor([1.0, 0.4]))
    assert x[1, : lengths[1]].mean(0).abs().max() < 1e-4
    assert (x[1, : lengths[1]].std(0, unbiased=False) - 1).abs().max() < 1e-3
    silent, _ = extractor(torch.zeros(1, 16000))
    assert torch.isfinite(silent).all()
    with pytest.raises(ValueError, match="running_level, utterance, got 'speaker'"):
        FeatureExtractor(Fbank(n_mels=40), 40, "speaker")


@pytest.mark.parametrize("normalization", ["level", "running_level"])
def test_features_without_a_level_are_refused(normalization):
    with pytest.raises(ValueError, match=f"{normalization} needs an Fbank without"):
        FeatureExtractor(Fbank(n_mels=40, deltas=True), 120, normalization)


def test_fit_normalises():
    extractor = FeatureExtractor(Fbank(n_mels=40), 40)
    utterances = [torch.randn(8000) * scale for scale in (0.1, 1.0, 3.0)]
    extractor.fit(utterances)
    frames = torch.cat([extractor(u.unsqueeze(0))[0][0] for u in utterances])
    assert frames.mean(0).abs().max() < 1e-3
    assert (frames.std(0) - 1).abs().max() < 1e-2
    with pytest.raises(ValueError, match="no utterance"):
        extractor.fit([])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_causal_front_end_sees_no_later_stride(shape):
    cnn = build(ConvolutionFrontEnd, shape, causal=True)
    x = torch.randn(1, 48, 20)
    y = cnn(x)
    assert y.shape[1] == 12 and cnn.stride == 4
    for cut in range(1, 48):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        changed = cnn(changed)
        assert torch.equal(changed[:, : cut // 4], y[:, : cut // 4])
        assert not torch.equal(changed[:, cut // 4], y[:, cut // 4])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_causal_front_end_takes_any_length_and_company(shape):
    cnn = build(ConvolutionFrontEnd, shape, causal=True)
    x, lengths = torch.randn(6, 23, 20), torch.tensor([23, 22, 21, 20, 2, 1])
    mask = torch.arange(23) >= lengths[:, None]
    y, out_lengths = cnn(x.masked_fill(mask.unsqueeze(-1), torch.nan), lengths)
    for row, length in enumerate(lengths):
        alone = cnn(x[row : row + 1, :length])[0]
        assert out_lengths[row] == alone.shape[0] == -(-length // 4)
        assert (y[row, : len(alone)] - alone).abs().max() <= 1e-5


def test_without_top_db_a_later_sound_changes_no_earlier_feature():
    quiet, loud = 1e-4 * torch.randn(1, 8000), torch.randn(1, 8000)
    wavs = torch.cat([quiet, loud], dim=1)
    for top_db, equal in ((None, True), (80.0, False)):
        extractor = FeatureExtractor(Fbank(n_mels=40), 40, top_db=top_db)
        features = extractor(wavs)[0][:, :48]
        assert torch.equal(features, extractor(quiet)[0][:, :48]) == equal


def extractor_without_offset(**options):
    return FeatureExtractor(
        Fbank(n_fft=512, n_mels=40), 40, remove_offset=True, top_db=None, **options
    )


def test_a_level_changes_no_feature_that_is_normalised_by_it():
    utterances = [torch.randn(n) for n in (16000, 9111)]
    lengths = torch.tensor([len(u) for u in utterances]) / 16000
    padded = torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True)
    for normalization, differs in (
        ("level", False),
        ("running_level", False),
        ("global", True),
    ):
        extractor = FeatureExtractor(Fbank(n_mels=40), 40, normalization)
        extractor.fit(utterances)
        (loud, counts), (quiet, _) = (
            extractor(padded, lengths),
            extractor(0.03 * padded, lengths),
        )
        for row, count in enumerate(counts):
            difference = (loud - quiet)[row, :count].abs().max()
            assert (difference > 1) == differs and (differs or difference < 1e-3)
    for normalization in ("level", "running_level"):
        means = []
        for gains in ((1.0, 1.0), (0.01, 1.0)):
            extractor = FeatureExtractor(Fbank(n_mels=40), 40, normalization)
            extractor.fit(u * gain for u, gain in zip(utterances, gains))
            means.append(extractor.mean)
        assert (means[0] - means[1]).abs().max() < 1e-3  # dB


@pytest.mark.parametrize("offset", [0.05, -0.3])
def test_a_constant_in_the_samples_changes_no_feature(offset):
    """Whole and padded utterances, their ends too, shorter than a window too."""
    extractor = extractor_without_offset()
    utterances = [0.05 * torch.randn(n) for n in (16000, 9111, 200)]
    lengths = torch.tensor([len(u) for u in utterances]) / 16000

    def features(constant):
        shifted = [u + constant for u in utterances]
        padded = torch.nn.utils.rnn.pad_sequence(shifted, batch_first=True)
        x, counts = extractor(padded, lengths)
        return [row[:count] for row, count in zip(x, counts)]

    for plain, shifted in zip(features(0.0), features(offset)):
        assert (plain - shifted).abs().max() < 0.01  # dB
    stock = FeatureExtractor(Fbank(n_fft=512, n_mels=40), 40)
    plain, shifted = (stock(utterances[:1][0][None] + c)[0] for c in (0.0, offset))
    assert (plain - shifted).abs().max() > 1


@pytest.mark.parametrize("n_fft, win_ms", [(400, 25), (512, 25), (513, 20.0625)])
def test_a_zero_mean_stft_is_that_of_frames_without_their_mean(n_fft, win_ms):
    stft = ZeroMeanSTFT(16000, win_length=win_ms, n_fft=n_fft)
    x = torch.randn(2, 3217, dtype=torch.float64) + 0.5
    got = torch.view_as_complex(stft(x))
    assert got.shape == STFT(16000, win_length=win_ms, n_fft=n_fft)(x.float()).shape[:3]
    left = (n_fft - stft.win_length) // 2
    for t in range(got.shape[1]):
        # The window lies in the middle of the transform's interval, as in torch.stft.
        begin = t * stft.hop_length - n_fft // 2 + left
        places = torch.arange(begin, begin + stft.win_length)
        inside = (places >= 0) & (places < x.shape[1])
        frame = torch.zeros(2, n_fft, dtype=torch.float64)
        real = x[:, places[inside]]
        frame[:, left : left + stft.win_length][:, inside] = (
            real - real.mean(1, keepdim=True)
        ) * stft.window[inside]
        assert (torch.fft.rfft(frame) - got[:, t]).abs().max() < 1e-10


def test_an_offset_is_removed_from_plain_features_only():
    for options in ({"deltas": True}, {"context": True}):
        with pytest.raises(ValueError, match="without deltas or context"):
            FeatureExtractor(Fbank(**options), 40, remove_offset=True)
