"""Convolution module, encoder layer and encoder."""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.encoders.conformer import ConformerEncoder
from hyperconformer.encoders.transformer import TransformerEncoder
from hyperconformer.nn.convolution import ConvolutionModule


def module(**options):
    return ConvolutionModule(12, kernel_size=5, **options).double().eval()


def test_causal_convolution_sees_no_future():
    conv, x = module(causal=True), torch.randn(1, 20, 12).double()
    y = conv(x)
    for cut in range(1, 20):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        assert torch.equal(conv(changed)[:, :cut], y[:, :cut])
        assert not torch.equal(conv(changed)[:, cut], y[:, cut])


@pytest.mark.parametrize("chunk_frames", [1, 3, 4, 50])
def test_chunked_convolution_sees_its_chunk_and_the_kernel_to_the_left(chunk_frames):
    conv, x = module(), torch.randn(1, 20, 12).double()
    y = conv(x, chunk=ChunkRule(chunk_frames))
    for frame in range(20):
        end = min((frame // chunk_frames + 1) * chunk_frames, 20)
        # Alone, with nothing after its chunk, a frame comes out the same.
        assert torch.allclose(conv(x[:, :end])[:, frame], y[:, frame], atol=1e-12)


def test_padding_does_not_reach_real_frames_or_gradients():
    conv, x = module(), torch.randn(2, 20, 12).double()
    mask = torch.arange(20) >= torch.tensor([[20], [13]])
    dirty = x.masked_fill(mask.unsqueeze(-1), float("nan"))
    y = conv(dirty, mask)
    assert torch.allclose(y[1, :13], conv(x[1:, :13])[0], atol=1e-12)


def test_even_kernel_is_refused_unless_causal():
    with pytest.raises(ValueError, match="odd"):
        ConvolutionModule(8, kernel_size=4)
    ConvolutionModule(8, kernel_size=4, causal=True)


def test_layerdrop_drops_in_training_only():
    encoder = ConformerEncoder(
        4, 8, d_ffn=16, nhead=2, kernel_size=3, layerdrop_prob=0.9
    )
    x = torch.randn(1, 6, 8)
    assert len(encoder.eval()(x)[1]) == 5
    assert min(len(encoder.train()(x)[1]) for _ in range(5)) < 5


def test_batch_equals_alone_with_nan_in_the_padding():
    encoder = ConformerEncoder(3, 16, d_ffn=32, nhead=4, kernel_size=7).double().eval()
    x = torch.randn(3, 30, 16).double()
    lengths = torch.tensor([30, 11, 1])
    mask = torch.arange(30) >= lengths[:, None]
    batch = encoder(x.masked_fill(mask.unsqueeze(-1), float("nan")), mask)[0]
    assert torch.isfinite(batch).all()
    for row, length in enumerate(lengths):
        alone = encoder(x[row : row + 1, :length])[0][0]
        assert torch.allclose(batch[row, :length], alone, atol=1e-12)


def test_gradients_are_free_of_padding():
    encoder = ConformerEncoder(2, 16, d_ffn=32, nhead=4, kernel_size=7).double()
    x = torch.randn(2, 20, 16).double()
    mask = torch.arange(20) >= torch.tensor([[20], [9]])
    x = x.masked_fill(mask.unsqueeze(-1), float("nan")).requires_grad_()
    y = encoder(x, mask)[0]
    y.masked_fill(mask.unsqueeze(-1), 0.0).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert torch.equal(x.grad[1, 9:], torch.zeros(11, 16).double())


RULE = ChunkRule(4, right_frames=3)
LENGTHS = torch.tensor([18, 11, 4])


def deep(**options):
    torch.manual_seed(1)
    encoder = ConformerEncoder(3, 16, d_ffn=16, nhead=2, kernel_size=9, **options)
    return encoder.double().eval()


@torch.no_grad()
def test_a_look_ahead_is_the_same_in_a_batch_alone_and_chunk_by_chunk():
    encoder = deep()
    x = torch.randn(3, 18, 16, dtype=torch.float64)
    mask = lengths_to_padding_mask(LENGTHS, 18)
    hidden = x.masked_fill(mask[..., None], float("nan"))
    whole, outputs = encoder(hidden, mask, RULE)
    assert [y.shape for y in outputs] == [x.shape] * 4
    for row, length in enumerate(LENGTHS.tolist()):
        alone, _ = encoder(x[row : row + 1, :length], None, RULE)
        torch.testing.assert_close(whole[row, :length], alone[0])
        state, streamed = encoder.init_state(1, chunk=RULE, dtype=x.dtype), []
        for begin in range(0, length, 4):
            window = x[row : row + 1, begin : min(begin + 7, length)]
            y, state = encoder.step(window, None, RULE, state)
            streamed.append(y)
        torch.testing.assert_close(torch.cat(streamed, 1), alone)


def test_layers_do_not_add_up_what_they_see_ahead():
    encoder = deep()
    x = torch.randn(1, 18, 16, dtype=torch.float64, requires_grad=True)
    y, _ = encoder(x, None, RULE)
    (y[0, 4:8] * torch.randn(4, 16)).sum().backward()
    seen = (x.grad[0].abs().sum(1) > 0).nonzero().flatten().tolist()
    # Its own chunk, the three frames after it, and all before it.
    assert seen == list(range(11))


def test_an_encoder_that_cannot_look_ahead_says_so():
    encoder = TransformerEncoder(1, 16, d_ffn=16, nhead=2)
    with pytest.raises(ValueError, match="TransformerEncoderLayer cannot look ahead"):
        encoder(torch.randn(1, 9, 16), None, RULE)
