"""What is PoM's own; the contract's tests cover the rest."""

import pytest
import torch
import torch.nn.functional as F

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.polynomial_mixing import PolynomialMixing
from hyperconformer.ops.polynomial_mixing import polynomial, reference


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [None, ChunkRule(3), ChunkRule(2, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"degree": 3, "width": 5}, {"degree": 1}])
def test_equals_the_equation(options, chunk, causal):
    mixer = PolynomialMixing(8, 2, causal=causal, **options).double()
    x, mask = torch.randn(2, 9, 8).double(), torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    factors = F.gelu(mixer.factors(x)).chunk(mixer.degree, dim=-1)
    visible = {"padding_mask": mask, "chunk": chunk, "causal": causal}
    gated = reference.polynomial_mixing(factors, mixer.selection(x), **visible)
    expected = gated @ mixer.to_out.weight.T + mixer.to_out.bias
    got, _ = mixer(x, padding_mask=mask, chunk=chunk)
    assert (got - expected)[~mask].abs().max() < 1e-12


def test_the_order_of_frames_does_not_matter():
    mixer, x = PolynomialMixing(8, 2).double(), torch.randn(1, 7, 8).double()
    order = torch.randperm(7)
    assert (mixer(x[:, order])[0] - mixer(x)[0][:, order]).abs().max() < 1e-12


def test_products_of_half_precision_do_not_overflow():
    factors = torch.full((3,), 200.0, dtype=torch.float16)
    assert polynomial(factors, 3).tolist() == [200.0, 200.0**2, 200.0**3]


@pytest.mark.parametrize("options", [{"degree": 0}, {"width": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="degree and width must be >= 1"):
        PolynomialMixing(8, 2, **options)
    with pytest.raises(ValueError, match="3 factors of one width .* got 8 channels"):
        polynomial(torch.zeros(8), 3)
