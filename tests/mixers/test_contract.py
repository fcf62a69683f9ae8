"""What every registered mixer owes; a new one is covered by being registered.

What a mixer can do, it says itself: nothing here but ``SMALL`` goes by names.
"""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule
from hyperconformer.mixers.registry import (
    build_mixer,
    list_mixers,
    mixer_class,
    mixer_options,
)
from hyperconformer.training.results import kept_bytes

D, H = 24, 2
LONG = 30000  # frames: twenty minutes of speech

# Options without which an input this small would not exercise the mixer.
SMALL = {
    "hyperglu": {"block_size": 6},
    "hypermlp": {"block_size": 6},
    "linear_attention": {"local_attn_window_size": 4, "n_local_attn_heads": 1},
    "mixture_of_attention": {
        "num_routed_queries": 3,
        "num_routed_key_values": 4,
        "local_attn_window_size": 4,
        # The straight-through estimator's gradient is not the forward pass's.
        "straight_through": False,
    },
}
# Only what is chosen for itself is tested as causal too.
CAUSAL = [name for name in list_mixers() if "causal" in mixer_options(name)]
EVERY = [(name, False) for name in list_mixers()] + [(name, True) for name in CAUSAL]


def build(name, causal=False, dtype=None, d_model=D, **more):
    """A small mixer in evaluation mode, in float64 where it can."""
    if dtype is None:
        dtype = widest(name)
    options = {**SMALL.get(name, {}), **more}
    if "causal" in mixer_options(name):
        options["causal"] = causal
    torch.manual_seed(1)
    mixer = build_mixer(name, d_model=d_model, num_heads=H, **options)
    return mixer.to(dtype).eval()


def widest(name):
    """The most exact type that a mixer can be cast to."""
    return max(mixer_class(name).dtypes, key=lambda dtype: dtype.itemsize)


def frames(name, *shape):
    """Random frames in the mixer's floating type."""
    return torch.randn(*shape, dtype=widest(name))


def close(got, expected):
    """Equal but for rounding: a few hundred float64 units, a few dozen float32 ones."""
    tolerance = 1e-10 if got.dtype == torch.float64 else 1e-5
    return (got - expected).abs().max() <= tolerance


def every(test):
    ids = [f"{name}-causal" if causal else name for name, causal in EVERY]
    return pytest.mark.parametrize("name,causal", EVERY, ids=ids)(test)


@every
@pytest.mark.parametrize("length", [1, 2, 17])
def test_shapes(name, causal, length):
    x = frames(name, 2, length, D)
    y, state = build(name, causal)(x)
    assert y.shape == x.shape and state is None and torch.isfinite(y).all()


@every
def test_no_frames_are_refused(name, causal):
    with pytest.raises(ValueError, match="T = 0"):
        build(name, causal)(frames(name, 2, 0, D))


@every
def test_gradients(name, causal):
    mixer = build(name, causal)
    if widest(name) != torch.float64:
        pytest.skip("has no float64 form")
    x = frames(name, 1, 7, D).requires_grad_()
    torch.autograd.gradcheck(lambda x: mixer(x)[0], (x,), fast_mode=True)


@every
def test_batch_equals_alone_and_nan_reaches_nothing(name, causal):
    mixer = build(name, causal).train()
    x = frames(name, 4, 21, D)
    lengths = torch.tensor([21, 13, 4, 1])
    mask = torch.arange(21) >= lengths[:, None]
    dirty = x.masked_fill(mask.unsqueeze(-1), float("nan")).requires_grad_()
    y, _ = mixer(dirty, padding_mask=mask)
    assert torch.isfinite(y).all()
    for row, length in enumerate(lengths):
        alone, _ = mixer(x[row : row + 1, :length])
        assert close(y[row, :length], alone[0])
    y.masked_fill(mask.unsqueeze(-1), 0.0).square().sum().backward()
    assert (dirty.grad.masked_select(mask.unsqueeze(-1)) == 0).all()
    grads = [p.grad for p in mixer.parameters() if p.grad is not None]
    assert bool(grads) == any(True for _ in mixer.parameters())
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_sees_no_future(name):
    mixer = build(name, causal=True)
    assert mixer.causal
    x = frames(name, 1, 14, D)
    y, _ = mixer(x)
    for cut in range(1, 14):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        assert close(mixer(changed)[0][:, :cut], y[:, :cut]), cut


@every
@pytest.mark.parametrize("rule", [ChunkRule(4), ChunkRule(3, 1), ChunkRule(5, 0)])
def test_chunk_rule_is_honoured_or_refused(name, causal, rule):
    mixer = build(name, causal)
    x = frames(name, 1, 17, D)
    try:
        y, _ = mixer(x, chunk=rule)
    except ValueError as refusal:
        assert "chunk" in str(refusal)
        return
    for frame in range(17):
        chunk = frame // rule.chunk_frames
        end = (chunk + 1) * rule.chunk_frames
        start = 0
        if rule.left_chunks is not None:
            start = max(0, chunk - rule.left_chunks) * rule.chunk_frames
        hidden = torch.ones(17, dtype=torch.bool)
        hidden[start:end] = False
        changed = torch.where(hidden[:, None], torch.randn_like(x), x)
        again, _ = mixer(changed, chunk=rule)
        assert close(again[0, frame], y[0, frame]), frame


@every
def test_deterministic_and_restored_from_its_state_dict(name, causal):
    one, other = build(name, causal), build(name, causal)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict(), strict=True)
    x = frames(name, 2, 9, D)
    assert torch.equal(one(x)[0], one(x)[0])
    assert torch.equal(one(x)[0], other(x)[0])


@every
def test_no_attention_map_and_no_square_of_the_length(name, causal):
    """A linear mixer keeps nothing of the size of T^2 for its backward pass."""
    mixer = build(name, causal, dtype=torch.float32).train()
    if mixer.quadratic:
        pytest.skip("quadratic by design")

    def measure(length):
        x = torch.randn(1, length, D, requires_grad=True)
        return kept_bytes(lambda: mixer(x), mixer.parameters())

    assert measure(1600) < 2.5 * measure(800)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow_on_long_correlated_input(name, causal, dtype):
    mixer = build(name, causal, dtype=torch.float32)
    # What is quadratic takes minutes for 30,000 frames: below, among the slow tests.
    length = 2000 if mixer.quadratic else LONG
    assert_finite_in_half_precision(mixer, length, D, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_mixers())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quadratic_mixers_do_not_overflow_on_long_correlated_input(name, dtype):
    """One narrow head: the scores alone are 1.8 GB."""
    mixer = build_mixer(name, d_model=8, num_heads=1).eval()
    if not mixer.quadratic:
        pytest.skip("covered among the fast tests")
    assert_finite_in_half_precision(mixer, LONG, 8, dtype)


def assert_finite_in_half_precision(mixer, length, d_model, dtype):
    x = 1.0 + 0.1 * torch.randn(1, length, d_model)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        y, _ = mixer(x)
    assert torch.isfinite(y).all()


@pytest.mark.integration
@every
def test_export(name, causal):
    mixer = build(name, causal, dtype=torch.float32)
    x = torch.randn(1, 16, D)
    program = torch.export.export(mixer, (x,))
    assert (program.module()(x)[0] - mixer(x)[0]).abs().max() < 1e-5


@pytest.mark.integration
@every
def test_compile(name, causal):
    torch.compiler.reset()
    mixer = build(name, causal, dtype=torch.float32)
    compiled = torch.compile(mixer, backend="eager", dynamic=False)
    x = torch.randn(1, 16, D)
    with torch.no_grad():
        assert (compiled(x)[0] - mixer(x)[0]).abs().max() < 1e-5


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(name, causal, dtype):
    """A model moved to half precision whole, as for inference on a GPU."""
    if dtype not in mixer_class(name).dtypes:
        pytest.skip(f"cannot be cast to {dtype}")
    x = torch.randn(2, 40, D)
    expected, _ = build(name, causal, dtype=torch.float32)(x)
    y, _ = build(name, causal, dtype=dtype)(x.to(dtype))
    assert y.dtype == dtype
    # Eight roundings to this type at the worst, one after another.
    error = (y.float() - expected).norm() / expected.norm()
    assert error < 8 * torch.finfo(dtype).eps
