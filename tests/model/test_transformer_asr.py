"""HyperConformerASR beside SpeechBrain's TransformerASR."""

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from hyperconformer import ConvolutionFrontEnd, HyperConformerASR
from hyperconformer.model.transformer_asr import STOCK_TYPES

SIZES = {"8M": (144, 576, 10), "22M": (256, 1024, 10)}


def settings(
    d_model=32, d_ffn=64, layers=2, attention="hypermixing", decoder=2, **more
):
    return {
        "input_size": 40,
        "tgt_vocab": 20,
        "d_model": d_model,
        "nhead": 4,
        "num_encoder_layers": layers,
        "num_decoder_layers": decoder,
        "d_ffn": d_ffn,
        "dropout": 0.1,
        "activation": torch.nn.GELU,
        "encoder_module": "conformer",
        "attention_type": attention,
        "normalize_before": True,
        "causal": False,
        **more,
    }


@pytest.mark.parametrize("size", SIZES)
def test_speechbrain_recipes_load_strictly_and_agree(size):
    d_model, d_ffn, layers = SIZES[size]
    options = settings(d_model, d_ffn, layers, decoder=4)
    options.update(input_size=640, tgt_vocab=5000, nhead=8)
    stock, ours = TransformerASR(**options).eval(), HyperConformerASR(**options).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    x, targets = torch.randn(1, 80, 640), torch.randint(3, 5000, (1, 9))
    with torch.no_grad():
        expected = stock(x, targets, torch.ones(1))
        got = ours(x, targets, torch.ones(1))
    for one, other in zip(expected, got):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("size,millions", [("8M", 7.9), ("22M", 21.7)])
def test_parameter_counts_of_the_speechbrain_recipes(size, millions):
    """With front end, CTC head and decoder head, as the recipes count."""
    d_model, d_ffn, layers = SIZES[size]
    options = settings(d_model, d_ffn, layers, decoder=4)
    options.update(input_size=640, tgt_vocab=5000, nhead=8)
    frontend = ConvolutionFrontEnd(
        input_shape=(8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(64, 32),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    heads = [Linear(input_size=d_model, n_neurons=5000) for _ in range(2)]
    modules = torch.nn.ModuleList([frontend, HyperConformerASR(**options), *heads])
    count = sum(p.numel() for p in modules.parameters()) / 1e6
    assert round(count, 1) == millions


@pytest.mark.parametrize("attention", STOCK_TYPES)
def test_every_stock_attention_agrees(attention):
    options = settings(attention=attention)
    stock, ours = TransformerASR(**options).eval(), HyperConformerASR(**options).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    x, targets = torch.randn(2, 33, 40), torch.randint(3, 20, (2, 7))
    with torch.no_grad():
        for one, other in zip(stock(x, targets), ours(x, targets)):
            assert (one - other).abs().max() <= 1e-5
        tokens, memory = targets[:, :4], torch.randn(2, 33, 32)
        expected = stock.decode(tokens, memory, torch.tensor([33, 20]))[0]
        got = ours.decode(tokens, memory, torch.tensor([33, 20]))[0]
    assert (expected - got).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "encoder,attention,more",
    [
        ("transformer", "hypermixing", {}),
        ("transformer", "regularMHA", {"normalize_before": False}),
        ("transformer", "RelPosMHAXL", {"causal": True}),
        ("transformer", "RoPEMHA", {}),
        ("branchformer", "hypermixing", {"kernel_size": 7}),
        ("branchformer", "RelPosMHAXL", {"use_linear_after_conv": True}),
    ],
)
def test_other_encoders_agree_and_keep_a_batch_apart(encoder, attention, more):
    options = settings(attention=attention)
    options.update(encoder_module=encoder, csgu_linear_units=24, **more)
    stock, ours = TransformerASR(**options).eval(), HyperConformerASR(**options).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    x, dirty, lengths = padded_batch()
    targets = torch.randint(3, 20, (3, 7))
    with torch.no_grad():
        for one, other in zip(stock(x, targets), ours(x, targets)):
            assert (one - other).abs().max() <= 1e-5
        batch = ours.encode(dirty, lengths / 40)
        for row, length in enumerate(lengths):
            alone = ours.encode(x[row : row + 1, :length], torch.ones(1))
            assert (batch[row, :length] - alone[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["regularMHA", "RelPosMHAXL", "RoPEMHA"])
@pytest.mark.parametrize("left", [None, 1])
def test_chunks_agree_with_speechbrain(attention, left):
    options = settings(attention=attention)
    stock, ours = TransformerASR(**options).eval(), HyperConformerASR(**options).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    config = DynChunkTrainConfig(5, left)
    x = torch.randn(1, 33, 40)
    with torch.no_grad():
        expected = stock.encode(x, torch.ones(1), dynchunktrain_config=config)
        got = ours.encode(x, torch.ones(1), dynchunktrain_config=config)
    assert (expected - got).abs().max() <= 1e-5


def padded_batch():
    x = torch.randn(3, 40, 40)
    lengths = torch.tensor([25, 40, 9])
    mask = torch.arange(40) >= lengths[:, None]
    return x, x.masked_fill(mask.unsqueeze(-1), float("nan")), lengths


@pytest.mark.parametrize("attention", STOCK_TYPES)
@pytest.mark.parametrize("chunked", [False, True])
def test_batch_equals_alone(attention, chunked):
    model = HyperConformerASR(**settings(attention=attention)).eval()
    config = DynChunkTrainConfig(4, 1) if chunked else None
    x, dirty, lengths = padded_batch()
    with torch.no_grad():
        batch = model.encode(dirty, lengths / 40, dynchunktrain_config=config)
        for row, length in enumerate(lengths):
            alone = model.encode(
                x[row : row + 1, :length], torch.ones(1), dynchunktrain_config=config
            )
            assert (batch[row, :length] - alone[0]).abs().max() <= 1e-5


def test_speechbrain_itself_fails_batch_equals_alone():
    """The defect that the test above guards against."""
    model = TransformerASR(**settings()).eval()
    x, _, lengths = padded_batch()
    with torch.no_grad():
        batch = model.encode(x, lengths / 40)
        alone = model.encode(x[:1, :25], torch.ones(1))
    assert (batch[0, :25] - alone[0]).abs().max() > 0.01


@pytest.mark.parametrize("attention", STOCK_TYPES)
def test_nan_in_the_padding_reaches_no_gradient(attention):
    model = HyperConformerASR(**settings(attention=attention))
    config = DynChunkTrainConfig(4, 0)
    _, dirty, lengths = padded_batch()
    encoded = model.encode(dirty, lengths / 40, dynchunktrain_config=config)
    encoded[0, :25].square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


def test_all_relative_lengths_below_one():
    model = HyperConformerASR(**settings()).eval()
    x, targets = torch.randn(2, 40, 40), torch.randint(3, 20, (2, 5))
    relative = torch.tensor([0.5, 0.7])
    with torch.no_grad():
        short = model(x, targets, relative)
        alone = model(x[:1, :20], targets[:1], torch.ones(1))
        tokens, _ = model.decode(targets, short[0], (relative * 40).long())
    assert (short[0][0, :20] - alone[0][0]).abs().max() <= 1e-5
    assert (short[1][0] - alone[1][0]).abs().max() <= 1e-5
    assert tokens.shape == (2, 5, 32)


def test_chunks_are_refused_by_a_mixer_that_cannot():
    model = HyperConformerASR(**settings(attention="mixture_of_attention"))
    with pytest.raises(ValueError, match="chunk"):
        model.encode(torch.randn(1, 8, 40), dynchunktrain_config=DynChunkTrainConfig(4))


def test_contradicting_settings_are_refused():
    with pytest.raises(ValueError, match="normalize_before"):
        HyperConformerASR(**settings(normalize_before=False))
    with pytest.raises(ValueError, match="causal"):
        HyperConformerASR(**settings(causal=True))
    with pytest.raises(ValueError, match="encoder_module.*conformer"):
        HyperConformerASR(**{**settings(), "encoder_module": "conformr"})
    with pytest.raises(ValueError, match="Branchformer looks ahead"):
        options = settings(attention="RelPosMHAXL", causal=True)
        HyperConformerASR(**{**options, "encoder_module": "branchformer"})
    with pytest.raises(ValueError, match="num_encoder_layers"):
        HyperConformerASR(**settings(layers=0))
    with pytest.raises(ValueError, match="known: .*hypermixing"):
        HyperConformerASR(**settings(attention="attention"))
    with pytest.raises(ValueError, match="blind to order"):
        options = settings(attention="regularMHA", decoder=0)
        HyperConformerASR(**options, positional_encoding=None)


@pytest.mark.parametrize(
    "attention, options",
    [
        ("mixture_of_attention", {"local_attn": False, "num_routed_queries": 20}),
        ("linear_attention", {}),
        ("regularMHA", {}),
        ("summary_mixing", {}),
        ("windowed_summary_mixing", {}),
    ],
)
def test_mixers_blind_to_order_get_position_codes(attention, options):
    """Without them, frames in another order would give the same, in that order."""
    given = settings(attention=attention, decoder=0)
    given.update(encoder_module="transformer", mixer_options=options)
    model = HyperConformerASR(**given).eval()
    with pytest.raises(ValueError, match="as configured is blind to order"):
        HyperConformerASR(**given, positional_encoding=None)
    x, order = torch.randn(1, 9, 40), torch.randperm(9)
    with torch.no_grad():
        encoded, turned = model.encode(x), model.encode(x[:, order])
        assert (encoded[:, order] - turned).abs().max() > 1e-2
        model.adds_position = False
        encoded, turned = model.encode(x), model.encode(x[:, order])
        assert (encoded[:, order] - turned).abs().max() < 1e-4


def test_position_codes_are_given_by_what_was_built():
    """A mixer may set ``needs_position`` in its constructor, either way."""
    given = settings(attention="mixture_of_attention", decoder=0)
    assert not HyperConformerASR(**given).adds_position
    HyperConformerASR(**given, positional_encoding=None)


def test_hidden_states():
    model = HyperConformerASR(**settings(output_hidden_states=True)).eval()
    encoded, hidden, decoded = model(torch.randn(1, 9, 40), torch.ones(1, 3).long())
    assert len(hidden) == 3 and decoded.shape == (1, 3, 32)
