"""What every mixer that streams owes: steps equal the whole, whatever the steps."""

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from tests.mixers.test_contract import EVERY, D, build, close, frames

T = 23
RULES = [None, ChunkRule(4), ChunkRule(3, left_chunks=3), ChunkRule(5, left_chunks=2)]
BOUNDED = RULES[2:]
# Options that change what a stream remembers.
MORE = {
    "hypermixing-normalized": ("hypermixing", False, {"normalize_by_frames": True}),
    "hypermixing-decay": ("hypermixing", False, {"learned_decay": True}),
    "hypermixing-tied": ("hypermixing", False, {"tied": True}),
    "linear_attention-blindspot": ("linear_attention", True, {"blindspot_size": 3}),
    "hyperglu-rope": ("hyperglu", True, {"use_rope": True}),
    "hyperglu-bidirectional": ("hyperglu", False, {"bidirectional": True}),
}
FORMS = {
    **{f"{n}-causal" if causal else n: (n, causal, {}) for n, causal in EVERY},
    **MORE,
}


def make(form, dtype=None):
    name, causal, options = FORMS[form]
    return build(name, causal, dtype, **options)


def cases(wanted=True, parted=False):
    """Forms and rules that the mixers say they stream under, or do not.

    ``parted``: of these, such as must not part a chunk.
    """
    built = {form: make(form) for form in FORMS}
    return [
        pytest.param(form, rule, id=f"{form}-{rule and (*vars(rule).values(),)}")
        for form, mixer in built.items()
        for rule in RULES
        if (mixer.unsupported_reason(rule) is None) == wanted
        if not parted or mixer.step_unit(rule) > 1
    ]


# What this package's own mixers promised once, they go on promising.
ATTENTIONS = ("RelPosMHAXL", "RoPEMHA", "regularMHA")
PROMISED = {
    **{f"{name}{form}": BOUNDED for name in ATTENTIONS for form in ("", "-causal")},
    **{form: RULES for form in FORMS if form.startswith(("hyperglu", "hypermlp"))},
    "hyperglu-bidirectional": [],
    **{form: RULES[1:] for form in FORMS if form.startswith("hypermixing")},
    "gated_deltanet": [],
    "gated_deltanet-causal": RULES[:2],
    "linear_attention": [],
    "linear_attention-causal": RULES[:2],
    "linear_attention-blindspot": RULES[:2],
    "polynomial_mixing": RULES[1:],
    "polynomial_mixing-causal": RULES,
    "summary_mixing": RULES[1:],
    "summary_mixing-causal": RULES,
    "windowed_summary_mixing": RULES[1:],
    "windowed_summary_mixing-causal": RULES,
    "mixture_of_attention": [],
    "mixture_of_attention-causal": [],
}


@pytest.mark.parametrize("form", PROMISED)
def test_promises_are_kept(form):
    mixer = make(form)
    assert [r for r in RULES if mixer.unsupported_reason(r) is None] == PROMISED[form]
    assert mixer.streamable == bool(PROMISED[form])


every_stream = pytest.mark.parametrize("form, rule", cases())


def take(x, start, count, length):
    """``count`` (B,) frames of each stream from ``start`` (B,) on, NaN in padding."""
    index = start[:, None] + torch.arange(length)
    step = x[torch.arange(len(x))[:, None], index.clamp(max=x.shape[1] - 1)]
    padding = lengths_to_padding_mask(count, length)
    return step.masked_fill(padding[..., None], float("nan")), padding


def stream_apart(mixer, x, lengths, rule, unit=1):
    """Stream a batch whose streams bring from no to three chunks, or units, a step."""
    unit = unit if rule is None else rule.chunk_frames
    state = mixer.init_state(len(x), chunk=rule)
    out, seen = torch.zeros_like(x), torch.zeros_like(lengths)
    while (seen < lengths).any():
        new = torch.minimum(torch.randint(0, 4, lengths.shape) * unit, lengths - seen)
        if new.max() == 0:
            continue
        step, padding = take(x, seen, new, new.max())
        kept = {key: value.clone() for key, value in state.items()}
        y, after = mixer(step, padding_mask=padding, chunk=rule, state=state)
        assert y.isfinite().all()
        assert set(after) == set(state)
        for key, value in state.items():
            assert torch.equal(value, kept[key]), f"{key} was changed"
            assert after[key].shape == value.shape and after[key].dtype == value.dtype
            assert torch.equal(after[key][new == 0], value[new == 0]), key
        for b, (start, count) in enumerate(zip(seen, new)):
            out[b, start : start + count] = y[b, :count]
        state, seen = after, seen + new
        assert torch.equal(state["frames_seen"], seen)
    return out


@every_stream
def test_streams_apart_equal_the_whole(form, rule):
    mixer = make(form)
    x, lengths = frames(FORMS[form][0], 3, T, D), torch.tensor([T, 9, 14])
    mask = lengths_to_padding_mask(lengths, T)
    whole, _ = mixer(x, padding_mask=mask, chunk=rule)
    hide = mask[..., None]
    for _ in range(3):
        streamed = stream_apart(mixer, x, lengths, rule)
        assert close(streamed.masked_fill(hide, 0), whole.masked_fill(hide, 0))


@every_stream
def test_hundreds_of_frames_in_single_precision(form, rule):
    mixer = make(form, torch.float32)
    x, lengths = torch.randn(2, 300, D), torch.tensor([300, 233])
    whole, _ = mixer(x, padding_mask=lengths_to_padding_mask(lengths, 300), chunk=rule)
    streamed = stream_apart(mixer, x, lengths, rule, unit=10)
    for b, length in enumerate(lengths):
        assert (streamed[b, :length] - whole[b, :length]).abs().max() < 1e-5


@every_stream
def test_no_future(form, rule):
    """In either form, no frame after a chunk changes what stands before its end."""
    mixer, unit = make(form), 1 if rule is None else rule.chunk_frames
    x = frames(FORMS[form][0], 2, T, D)
    begun = 2 * unit
    _, state = mixer(x[:, :begun], chunk=rule, state=mixer.init_state(2, chunk=rule))
    whole, _ = mixer(x, chunk=rule)
    step, _ = mixer(x[:, begun:], chunk=rule, state=state)
    for cut in range(1, T):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        safe = cut // unit * unit
        again, _ = mixer(changed, chunk=rule)
        assert safe == 0 or close(again[:, :safe], whole[:, :safe])
        assert not close(again[:, cut:], whole[:, cut:])
        if cut > begun:
            again, _ = mixer(changed[:, begun:], chunk=rule, state=state)
            safe -= begun
            assert safe == 0 or close(again[:, :safe], step[:, :safe])


@every_stream
def test_streams_join_and_part(form, rule):
    """Streams that ran alone go on together, and a part of a batch goes on without."""
    mixer, unit = make(form), 1 if rule is None else rule.chunk_frames
    x = frames(FORMS[form][0], 3, 8 * unit, D)
    alone = []
    for b, chunks in enumerate((1, 0, 4)):
        state = mixer.init_state(1, chunk=rule)
        if chunks:
            head = x[b : b + 1, : chunks * unit]
            _, state = mixer(head, chunk=rule, state=state)
        alone.append(state)
    together = {key: torch.cat([s[key] for s in alone]) for key in alone[0]}
    start = torch.tensor([1, 0, 4]) * unit
    step, _ = take(x, start, torch.full((3,), 2 * unit), 2 * unit)
    y, together = mixer(step, chunk=rule, state=together)
    for b, state in enumerate(alone):
        expected, after = mixer(step[b : b + 1], chunk=rule, state=state)
        assert close(y[b], expected[0])
        for key, value in after.items():
            torch.testing.assert_close(together[key][b], value[0], atol=1e-5, rtol=1e-5)
    part = {key: value[[2, 0]] for key, value in together.items()}
    more, _ = take(x, start + 2 * unit, torch.full((3,), unit), unit)
    expected, _ = mixer(more, chunk=rule, state=together)
    y, _ = mixer(more[[2, 0]], chunk=rule, state=part)
    assert close(y, expected[[2, 0]])


@every_stream
def test_steps_that_do_not_fit_are_refused(form, rule):
    mixer, state = make(form), make(form).init_state(2, chunk=rule)
    x = frames(FORMS[form][0], 3, 6, D)
    with pytest.raises(ValueError, match="state of 2 streams .* batch of 3"):
        mixer(x, chunk=rule, state=state)
    gap = torch.tensor([[False] * 6, [False, True, False, True, True, True]])
    with pytest.raises(ValueError, match="padding must follow"):
        mixer(x[:2], padding_mask=gap, chunk=rule, state=state)


@pytest.mark.parametrize("form, rule", cases(parted=True))
def test_a_chunk_split_over_steps_is_refused(form, rule):
    mixer, x = make(form), frames(FORMS[form][0], 2, 9, D)
    padding = lengths_to_padding_mask(torch.tensor([2, rule.chunk_frames]), 5)
    state = mixer.init_state(2, chunk=rule)
    _, state = mixer(x[:, :5], padding_mask=padding, chunk=rule, state=state)
    with pytest.raises(ValueError, match=r"split over steps: streams \[0\]"):
        mixer(x[:, 5:], chunk=rule, state=state)
    # The other stream goes on.
    ended = lengths_to_padding_mask(torch.tensor([0, 4]), 4)
    mixer(x[:, 5:], padding_mask=ended, chunk=rule, state=state)


@pytest.mark.parametrize("form, rule", cases(wanted=False))
def test_what_cannot_stream_is_refused(form, rule):
    mixer = make(form)
    with pytest.raises(ValueError, match="stream|left context"):
        state = mixer.init_state(2, chunk=rule)
        mixer(frames(FORMS[form][0], 2, 5, D), chunk=rule, state=state)


@every_stream
def test_states_live_where_and_as_they_are_told(form, rule):
    mixer = make(form)
    state = mixer.init_state(3, chunk=rule, device="meta", dtype=torch.float32)
    assert state["frames_seen"].shape == (3,)
    for value in state.values():
        assert len(value) == 3 and value.device.type == "meta"
        assert value.dtype in (torch.float32, torch.int64, torch.bool)
