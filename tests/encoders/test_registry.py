"""Names of encoders: one line each, strict, and helpful when wrong."""

import pytest
import torch
from torch import nn

from hyperconformer.encoders.registry import ENCODERS, build_encoder, encoder_class
from hyperconformer.encoders.stack import EncoderStack
from hyperconformer.model.transformer_asr import HyperConformerASR


class ScalingLayer(nn.Module):
    def __init__(self, d_model, dropout=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(d_model))
        self.dropout = dropout

    def forward(self, x, padding_mask=None, chunk=None):
        return self.scale * x


class ScalingEncoder(EncoderStack):
    layer_class = ScalingLayer
    requires = {"causal": (True, "it is a test")}


def test_a_new_encoder_is_one_line(monkeypatch):
    monkeypatch.setitem(ENCODERS, "scaling", ScalingEncoder)
    options = {"tgt_vocab": 5, "input_size": 6, "d_model": 8, "nhead": 2}
    options.update(num_encoder_layers=3, num_decoder_layers=0, dropout=0.25)
    model = HyperConformerASR(encoder_module="scaling", causal=True, **options)
    assert isinstance(model.encoder, ScalingEncoder) and len(model.encoder.layers) == 3
    # Of what the model offers, layers get what they know.
    assert model.encoder.layers[0].dropout == 0.25
    assert model.encode(torch.randn(2, 9, 6)).shape == (2, 9, 8)
    with pytest.raises(ValueError, match="a test: it needs causal=True, got False"):
        HyperConformerASR(encoder_module="scaling", causal=False, **options)


@pytest.mark.parametrize("name", ["conformr", ["conformer"], None])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown encoder_module .*known: branchf"):
        encoder_class(name)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_built_from_the_same_offer(name):
    offer = {"d_ffn": 16, "csgu_linear_units": 16, "nhead": 2, "layerdrop_prob": 0.5}
    encoder = build_encoder(encoder_class(name), 2, 8, **offer)
    assert encoder.layerdrop_prob == 0.5
    assert encoder(torch.randn(2, 9, 8))[0].shape == (2, 9, 8)
