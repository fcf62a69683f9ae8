"""HyperMixing under a chunk rule: the running sums against chunk after chunk."""

import pytest
import torch

from benchmarks.gpu.operands import random_hypernet, tail_mask
from hyperconformer.core.masks import ChunkRule
from hyperconformer.ops.hypermixing import (
    Hypernet,
    chunked,
    generation,
    hypermixing,
    hypermixing_in_chunks,
)
from tests.goldens import relative_error
from tests.ops.test_hypermixing import random_tokens

RULES = [
    ChunkRule(1),
    ChunkRule(4),
    ChunkRule(3, 2),
    ChunkRule(5, 0),
    ChunkRule(2, 6),
    ChunkRule(100),
]
IDS = [f"{rule.chunk_frames}-{rule.left_chunks}" for rule in RULES]
OPTIONS = {
    "plain": {},
    "decay": {"decay": torch.tensor([0.8, 0.97], dtype=torch.float64)},
    "normalized": {"normalize": True},
    "both": {"decay": torch.tensor([0.9, 1.0], dtype=torch.float64), "normalize": True},
}
every_rule = pytest.mark.parametrize("rule", RULES, ids=IDS)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def nets(bias=True, dtype=torch.float64):
    return [random_hypernet(2, 6, 5, 9, bias, dtype=dtype) for _ in range(2)]


@every_rule
@every_option
@pytest.mark.parametrize("length", [1, 19])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_equals_reference(rule, options, length, bias):
    x = random_tokens(3, length, 12)
    weights = nets(bias)
    inputs = [x, *(w for net in weights for w in net if w is not None)]
    if "decay" in options:
        options = {**options, "decay": options["decay"].clone().requires_grad_()}
        inputs.append(options["decay"])
    options = {
        **options,
        "chunk": rule,
        "codes": torch.randn(25, 12, dtype=torch.float64),
        "padding_mask": tail_mask(3, length),
    }
    results = []
    for backend in ("torch", "reference"):
        out, past = hypermixing_in_chunks(x, *weights, **options, backend=backend)
        assert past is None
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        gradients = torch.autograd.grad(
            (out * weight).sum(), inputs, materialize_grads=True
        )
        results.append((out, *gradients))
    for got, expected in zip(*results):
        assert relative_error(got, expected) < 1e-10


def test_without_a_rule_it_is_the_whole_utterance():
    x, mask, weights = random_tokens(3, 40, 12), tail_mask(3, 40), nets()
    out, _ = hypermixing_in_chunks(x, *weights, padding_mask=mask)
    masks = {"key_padding_mask": mask, "query_padding_mask": mask}
    assert relative_error(out, hypermixing(x, x, x, *weights, **masks)) < 1e-12


@every_rule
@every_option
def test_streams_apart_equal_the_whole(rule, options):
    """Streams of a batch bring from no to three chunks a step."""
    weights, lengths = nets(), torch.tensor([23, 8, 14])
    x, codes = random_tokens(3, 23, 12), torch.randn(23, 12, dtype=torch.float64)
    options = {**options, "chunk": rule}
    mask = torch.arange(23) >= lengths[:, None]
    whole, _ = hypermixing_in_chunks(
        x, *weights, codes=codes, padding_mask=mask, **options
    )
    past = chunked.init_past(
        weights[0], 3, chunk=rule, normalize=options.get("normalize", False)
    )
    seen = torch.zeros(3, dtype=torch.int64)
    for _ in range(100):
        chunks = torch.randint(0, 4, (3,))
        new = torch.minimum(chunks * rule.chunk_frames, lengths - seen)
        if new.max() == 0:
            continue
        padding = torch.arange(new.max()) >= new[:, None]
        index = (seen[:, None] + torch.arange(new.max())).clamp(max=22)
        step = x[torch.arange(3)[:, None], index]
        step = step.masked_fill(padding[..., None], float("nan"))
        out, after = hypermixing_in_chunks(
            step,
            *weights,
            codes=codes[index],
            padding_mask=padding,
            past=past,
            **options,
        )
        for b in range(3):
            expected = whole[b, seen[b] : seen[b] + new[b]]
            assert (out[b, : new[b]] - expected).abs().sum() < 1e-10
            if new[b] == 0:
                assert torch.equal(after[b], past[b])
        past, seen = after, seen + new
    assert torch.equal(seen, lengths)


@pytest.mark.parametrize("width", range(1, 12))
@pytest.mark.parametrize("decays", [True, False])
def test_sums_over_window(width, decays):
    sums = torch.randn(2, 3, 2, 9, 4, dtype=torch.float64)
    factor = torch.tensor([0.5, 0.9], dtype=torch.float64) if decays else torch.ones(2)
    expected = torch.zeros_like(sums)
    for c in range(9):
        for older in range(max(0, c - width + 1), c + 1):
            power = (factor ** (c - older))[:, None, None, None]
            expected[..., c, :] += power * sums[..., older, :]
    got = chunked.sums_over_window(sums, width, factor if decays else None)
    assert relative_error(got, expected) < 1e-12


def test_a_small_frame_survives_a_loud_past():
    """A bounded left context adds its chunks anew: nothing of a sum cancels."""
    weights = nets(dtype=torch.float32)
    quiet = random_tokens(1, 12, 12, dtype=torch.float32)
    loud = torch.cat([1e6 * torch.randn(1, 40, 12), quiet], dim=1)
    rule = ChunkRule(4, left_chunks=1)
    expected, _ = hypermixing_in_chunks(quiet, *weights, chunk=rule)
    got, _ = hypermixing_in_chunks(loud, *weights, chunk=rule)
    # The quiet utterance's first chunk still sees a loud one.
    assert relative_error(got[:, -8:], expected[:, -8:]) < 1e-6


@pytest.mark.parametrize("rule, cpu", [(ChunkRule(3), True), (ChunkRule(2, 2), False)])
def test_gradcheck(rule, cpu, monkeypatch):
    # Blocks of 5 columns of 2 x 3 rows, or as other devices take them, one.
    monkeypatch.setattr(generation, "BLOCK_SIZE", 5 * 6)
    monkeypatch.setattr(generation, "is_cpu", lambda device: cpu)
    weights = [random_hypernet(2, 2, 2, 3) for _ in range(2)]
    decay = torch.tensor([0.7, 0.9], dtype=torch.float64, requires_grad=True)

    def function(x, decay, *weights):
        first, second = Hypernet(*weights[:4]), Hypernet(*weights[4:])
        return hypermixing_in_chunks(
            x,
            first,
            second,
            chunk=rule,
            codes=torch.ones(8, 4, dtype=torch.float64),
            padding_mask=tail_mask(2, 8),
            decay=decay,
            normalize=True,
        )[0]

    x = random_tokens(2, 8, 4)
    assert torch.autograd.gradcheck(function, [x, decay, *weights[0], *weights[1]])


@pytest.mark.parametrize("chunk_frames", [16, 64])
def test_backward_keeps_the_input_and_the_sums(chunk_frames):
    """Two matrices (33, 32) a head and chunk, and the input (chunk_frames, 32)."""
    x = random_tokens(1, 3200, 256, dtype=torch.float32)
    weights = [random_hypernet(8, 32, 32, 128, dtype=torch.float32) for _ in range(2)]
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hypermixing_in_chunks(x, *weights, chunk=ChunkRule(chunk_frames))
    expected = (1 + 2 * 33 / chunk_frames) * x.numel() * x.element_size()
    parameters = sum(w.numel() * w.element_size() for net in weights for w in net)
    assert sum(kept.values()) <= expected + 2 * parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_overflow(dtype):
    weights = nets(dtype=torch.float32)
    x = (3 + 0.1 * torch.randn(1, 30_000, 12)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out, _ = hypermixing_in_chunks(x, *weights, chunk=ChunkRule(16))
    (gradient,) = torch.autograd.grad(out.mean(), x)
    expected, _ = hypermixing_in_chunks(
        x.double(), *(net.to(torch.float64) for net in weights)
    )
    assert expected.abs().max() > torch.finfo(torch.float16).max
    assert out.dtype == torch.float32 and gradient.dtype == dtype
    # The last chunk sees what the whole utterance sees.
    assert relative_error(out[:, -16:], expected[:, -16:]) < 1e-3
    assert gradient.isfinite().all()


def test_forced_backend():
    x, weights = random_tokens(1, 8, 12), nets()
    past = chunked.init_past(weights[0], 1)
    with pytest.raises(ValueError, match="takes no past"):
        hypermixing_in_chunks(
            x, *weights, chunk=ChunkRule(4), past=past, backend="reference"
        )
    with pytest.raises(ValueError, match="backend 'fast'"):
        hypermixing_in_chunks(x, *weights, backend="fast")
