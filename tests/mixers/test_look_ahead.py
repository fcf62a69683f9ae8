"""Chunks that see ahead: what every mixer that streams owes with right frames."""

from dataclasses import replace

import pytest
import torch

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.core.windows import own_frames, unfold, window_padding
from tests.mixers.test_contract import D, close, frames, widest
from tests.mixers.test_streaming import FORMS, T, make

RULES = [
    ChunkRule(4, right_frames=3),
    ChunkRule(4, left_chunks=0, right_frames=2),
    ChunkRule(3, left_chunks=3, right_frames=5),
    ChunkRule(5, left_chunks=2, right_frames=1),
]
LENGTHS = torch.tensor([T, 9, 14])


BUILT = {form: make(form) for form in FORMS}


def cases(rules):
    return [
        pytest.param(form, rule, id=f"{form}-{(*vars(rule).values(),)}")
        for form, mixer in BUILT.items()
        for rule in rules
        if mixer.unsupported_reason(replace(rule, right_frames=0)) is None
    ]


every_look_ahead = pytest.mark.parametrize("form, rule", cases(RULES))
# All before a chunk or some of it, and a look-ahead shorter or longer than the chunk.
two_look_aheads = pytest.mark.parametrize("form, rule", cases(RULES[::2]))


def ahead(mixer, x, rule, mask=None):
    """(B, T, D) own frames, by windows."""
    padding = window_padding(mask, x, rule)
    y, _ = mixer.look_ahead(unfold(x, rule), padding_mask=padding, chunk=rule)
    return own_frames(y, rule, x.shape[1])


@every_look_ahead
def test_chunk_by_chunk_equals_all_at_once(form, rule):
    """In company and alone, padding holding NaN."""
    mixer, x = make(form), frames(FORMS[form][0], 3, T, D)
    mask = lengths_to_padding_mask(LENGTHS, T)
    hidden = x.masked_fill(mask[..., None], float("nan"))
    whole = ahead(mixer, hidden, rule, mask)
    assert whole.isfinite().all()
    own = replace(rule, right_frames=0)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = x[row : row + 1, :length]
        assert close(whole[row, :length], ahead(mixer, alone, rule)[0])
        state, out = mixer.init_state(1, chunk=own), []
        for begin in range(0, length, rule.chunk_frames):
            window = alone[:, None, begin : begin + rule.window_frames]
            y, state = mixer.look_ahead(window, chunk=rule, state=state)
            out.append(y[0, 0, : rule.chunk_frames])
        assert close(whole[row, :length], torch.cat(out))
        assert state["frames_seen"].tolist() == [length]


@two_look_aheads
def test_the_state_is_that_of_the_own_frames(form, rule):
    mixer, x = make(form), frames(FORMS[form][0], 2, 3 * rule.chunk_frames, D)
    own = replace(rule, right_frames=0)
    _, after = mixer.look_ahead(
        unfold(x, rule),
        padding_mask=window_padding(None, x, rule),
        chunk=rule,
        state=mixer.init_state(2, chunk=own),
    )
    _, expected = mixer(x, chunk=own, state=mixer.init_state(2, chunk=own))
    assert set(after) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-5, rtol=1e-5)


@two_look_aheads
def test_frames_see_the_right_frames_and_no_more(form, rule):
    mixer, x = make(form), frames(FORMS[form][0], 1, T, D)
    first, second = rule.chunk_frames, 2 * rule.chunk_frames
    whole = ahead(mixer, x, rule)
    end = second + rule.right_frames
    for cut in (second, end - 1, end, T - 1):
        changed = x.clone()
        changed[:, cut:] = torch.randn_like(changed[:, cut:])
        y = ahead(mixer, changed, rule)[:, first:second]
        is_seen = cut < end and not mixer.causal
        assert close(y, whole[:, first:second]) != is_seen


UNBOUNDED = ChunkRule(4, right_frames=3)


@pytest.mark.parametrize(
    "form",
    # Those whose frames weigh alike, and see alike, wherever their chunk begins.
    [case.values[0] for case in cases([UNBOUNDED]) if "decay" not in case.values[0]],
)
def test_a_window_is_a_whole_that_ends_there(form):
    """Without chunks or state: what lies before a chunk, the chunk and its look-ahead,
    mixed as one utterance."""
    mixer, x = make(form), frames(FORMS[form][0], 2, T, D)
    got = ahead(mixer, x, UNBOUNDED)
    for begin in range(0, T, 4):
        expected, _ = mixer(x[:, : begin + 7])
        assert close(got[:, begin : begin + 4], expected[:, begin : begin + 4])


@two_look_aheads
def test_without_a_future_nothing_changes(form, rule):
    """The last chunk of an utterance has no look-ahead."""
    mixer, x = make(form), frames(FORMS[form][0], 2, rule.chunk_frames - 1, D)
    own = replace(rule, right_frames=0)
    expected, _ = mixer(x, chunk=own)
    assert close(ahead(mixer, x, rule), expected)


@pytest.mark.parametrize(
    "form, rule",
    # Differences of single precision say little.
    [
        case
        for case in cases(RULES[::2])
        if widest(FORMS[case.values[0]][0]) == torch.float64
    ],
)
def test_gradients_reach_every_frame_that_is_seen(form, rule):
    """Through the state too: those of a chunk are those of finite differences."""
    mixer, x = make(form), frames(FORMS[form][0], 1, 2 * rule.chunk_frames, D)
    x, direction = x.requires_grad_(), torch.randn_like(x)
    weights = torch.randn(rule.chunk_frames, D, dtype=x.dtype)

    def loss(x):
        return (ahead(mixer, x, rule)[0, rule.chunk_frames :] * weights).sum()

    loss(x).backward()
    step = 1e-6
    with torch.no_grad():
        up, down = (loss(x + sign * step * direction) for sign in (1, -1))
    slope = (up - down) / (2 * step)
    torch.testing.assert_close(
        (x.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6 * weights.norm().item()
    )


def test_a_state_of_another_rule_is_refused():
    mixer, x = make("hypermixing"), frames("hypermixing", 1, 7, D)
    state = mixer.init_state(1, chunk=ChunkRule(4, left_chunks=2))
    with pytest.raises(
        ValueError, match="sums of 1 chunks is needed .* got one with 2"
    ):
        mixer.look_ahead(x[:, None], chunk=ChunkRule(4, right_frames=3), state=state)


@two_look_aheads
def test_the_plain_call_refuses_right_frames(form, rule):
    mixer, x = make(form), frames(FORMS[form][0], 1, T, D)
    with pytest.raises(ValueError, match="honoured in look_ahead"):
        mixer(x, chunk=rule)
    state = mixer.init_state(1, chunk=replace(rule, right_frames=0))
    with pytest.raises(
        ValueError, match=f"at most {rule.window_frames} frames .*; got {T}"
    ):
        mixer(x, chunk=rule, state=state)
