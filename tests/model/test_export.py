"""The recogniser in PyTorch's tools: quantisation, TorchScript, exported programs."""

import copy
import functools
import pathlib
import pickle
import warnings

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from torch import nn

from hyperconformer.config import read_config
from hyperconformer.mixers.registry import list_mixers
from hyperconformer.nn.linear import Linear

RECIPE = pathlib.Path(__file__).parents[2] / "hparams/hyperconformer.yaml"
SMALL = {
    "num_encoder_layers": 1,
    "d_model": 16,
    "nhead": 2,
    "d_ffn": 32,
    "kernel_size": 7,
}


class Whole(nn.Module):
    """Samples and relative lengths to log-probabilities and their lengths."""

    def __init__(self, extractor, recognizer):
        super().__init__()
        self.extractor, self.recognizer = extractor, recognizer

    def forward(self, wavs, wav_lens):
        found = self.recognizer(*self.extractor(wavs, wav_lens))
        return found.ctc, found.lengths


def build(tmp_path, **settings):
    torch.manual_seed(0)
    settings = {"output_folder": str(tmp_path), **SMALL, **settings}
    config = load_hyperpyyaml(read_config(RECIPE, settings), {"vocab_size": 30})
    return Whole(config["extractor"], config["recognizer"]).eval()


@pytest.fixture
def whole(tmp_path):
    return build(tmp_path)


def audio(samples, batch=2):
    torch.manual_seed(samples)
    return 0.1 * torch.randn(batch, samples), torch.tensor([0.6, 1.0])[-batch:]


def assert_same(program, whole, batches):
    """Equal in real frames, but for the order of sums in float32."""
    for wavs, wav_lens in batches:
        with torch.no_grad():
            expected, lengths = whole(wavs, wav_lens)
            got, got_lengths = program(wavs, wav_lens)
        assert torch.equal(got_lengths, lengths)
        assert got.shape == expected.shape
        real = torch.arange(got.shape[1]) < lengths[:, None]
        assert (got - expected)[real].abs().max() < 1e-4


OTHER_LENGTHS = [audio(8001), audio(16000), audio(33333)]


def test_quantize_dynamic_finds_every_linear_layer(whole):
    layers = [name for name, layer in whole.named_modules() if type(layer) is Linear]
    assert len(layers) > 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(
            whole, {nn.Linear}, dtype=torch.qint8
        )
    found = dict(quantised.named_modules())
    for name in layers:
        assert type(found[name]) is torch.ao.nn.quantized.dynamic.Linear, name
    wavs, wav_lens = audio(16000)
    with torch.no_grad():
        expected, got = whole(wavs, wav_lens)[0], quantised(wavs, wav_lens)[0]
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < 0.05  # steps of 8 bits


@pytest.mark.integration
@pytest.mark.parametrize("mixer", list_mixers())
def test_every_mixer_runs_quantised(mixer, tmp_path):
    whole = build(tmp_path, attention_type=mixer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(whole, {nn.Linear})
    assert not any(type(layer) is Linear for layer in quantised.modules())
    wavs, wav_lens = audio(16000)
    with torch.no_grad():
        expected, got = whole(wavs, wav_lens)[0], quantised(wavs, wav_lens)[0]
    assert (got - expected).norm() / expected.norm() < 0.05


def test_as_a_class_linear_equals_torchs_and_nothing_else():
    class Own(Linear):
        pass

    assert Linear == nn.Linear and nn.Linear == Linear
    assert hash(Linear) == hash(nn.Linear)
    assert Linear is not nn.Linear and Linear != nn.Module
    assert Own == Own and Own != Linear and Own != nn.Linear and Linear != Own
    assert len({Own, Linear, nn.Linear}) == 2
    layer, x = Linear(4, 6), torch.randn(3, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(twin) is Linear
        assert torch.equal(twin(x), layer(x))
    nn.utils.parametrizations.weight_norm(layer)
    parametrized = type(layer)
    assert parametrized not in {nn.Linear: "torch's", Linear: "ours"}


def test_trace_takes_other_lengths(whole):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Even one without padding: what is recorded must not depend on it.
        example = audio(16000)[0], torch.ones(2)
        with torch.no_grad():
            traced = torch.jit.trace(whole, example, check_trace=False)
    assert_same(traced, whole, OTHER_LENGTHS)


def test_trace_is_saved_and_loaded(whole, tmp_path):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(whole, audio(16000), check_trace=False)
        traced.save(str(tmp_path / "traced.pt"))
        loaded = torch.jit.load(str(tmp_path / "traced.pt"))
    assert_same(loaded, whole, OTHER_LENGTHS)


@pytest.mark.integration
def test_export_takes_other_lengths_and_batches(whole):
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=1000)
    shapes = {"wavs": {0: batch, 1: samples}, "wav_lens": {0: batch}}
    program = torch.export.export(whole, audio(16000), dynamic_shapes=shapes)
    assert_same(program.module(), whole, [*OTHER_LENGTHS, audio(20000, batch=1)])


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports the recogniser for a fixed number of utterances, of any length."""

    @functools.cache
    def exported(batch):
        whole = build(tmp_path_factory.mktemp("export"))
        shapes = {"wavs": {1: torch.export.Dim.DYNAMIC}, "wav_lens": None}
        example = audio(16000, batch)
        return whole, torch.export.export(whole, example, dynamic_shapes=shapes)

    return exported


@pytest.mark.integration
@pytest.mark.parametrize("batch", [1, 2])
def test_export_of_a_fixed_batch_takes_other_lengths(export, batch):
    whole, program = export(batch)
    batches = [audio(samples, batch) for samples in (8001, 33333)]
    assert_same(program.module(), whole, batches)


@pytest.mark.integration
def test_exported_programs_need_no_operator_of_this_package(export):
    _, program = export(2)
    for node in program.graph.nodes:
        assert "hyperconformer::" not in str(getattr(node.target, "_schema", ""))


def test_longer_audio_than_the_table_of_position_codes(export):
    """What is exported makes its codes, and knows no longest utterance."""
    whole, program = export(2)
    samples = 3100 * 640
    assert_same(program.module(), whole, [audio(samples)])
