"""Cutting long audio, and putting together what was recognised."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.transcribe.longform import (
    Pauses,
    Tape,
    cut_at_pauses,
    merge_frame,
    merge_nbest,
    speech_stretches,
    split_audio,
)

CHUNK, OVERLAP, GRID, QUIET = 400, 50, 8, 20


def split(samples, cuts):
    """Chunks of samples that arrive in blocks cut at the given places."""
    edges = [0, *sorted(cuts), len(samples)]
    blocks = [samples[a:b] for a, b in itertools.pairwise(edges)]
    return list(split_audio(blocks, CHUNK, OVERLAP, GRID, QUIET))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 5000),
    st.lists(st.integers(0, 5000), max_size=5),
    st.integers(0, 2**31),
)
def test_chunks_cover_everything_once_and_know_their_surroundings(count, cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, generator=generator)
    chunks = split(samples, [min(cut, count) for cut in cuts])
    assert chunks[0].begin == 0 and chunks[-1].end == count
    assert all(a.end == b.begin for a, b in itertools.pairwise(chunks))
    for chunk in chunks:
        end = chunk.offset + len(chunk.samples)
        assert torch.equal(chunk.samples, samples[chunk.offset : end])
        assert chunk.offset <= chunk.begin <= chunk.end <= end
        # Bounded, whatever the length of the audio and of its blocks.
        assert len(chunk.samples) <= CHUNK + 2 * OVERLAP
        assert chunk.offset % GRID == chunk.begin % GRID == 0
    for chunk in chunks[1:]:
        assert chunk.begin - chunk.offset == OVERLAP - OVERLAP % GRID
    for chunk in chunks[:-1]:
        assert chunk.end - chunk.begin >= CHUNK // 2 - GRID
    whole = split(samples, [])
    assert [chunk.begin for chunk in chunks] == [chunk.begin for chunk in whole]


def test_cuts_are_made_where_it_is_quiet():
    samples = torch.ones(1000)
    samples[310:350] = 0.01
    first = split(samples, [])[0]
    assert 310 + QUIET // 2 <= first.end <= 350 - QUIET // 2


# Tokens: 0 blank, 1 the space before a word, 2 and 3 letters.
STARTS = torch.tensor([False, True, False, False])


def frames(*tokens):
    """Log-probabilities of which each frame's token is by far the best."""
    return torch.eye(4)[list(tokens)].clamp(min=1e-4).log()


def test_chunks_take_over_between_words():
    left = frames(2, 0, 3, 0, 0, 1, 2, 0)
    right = frames(2, 0, 3, 0, 0, 1, 2, 0)
    # Frames 3 and 4 are blank and before a word, frame 7 before nothing more.
    assert merge_frame(left, right, 1, STARTS) == 3
    assert merge_frame(left, right, 4, STARTS) == 4
    assert merge_frame(left, right, 7, STARTS) == 7


def test_a_word_heard_at_other_frames_is_neither_lost_nor_doubled():
    left = frames(2, 3, 0, 0, 0, 1, 2, 0, 0)
    right = frames(0, 2, 3, 0, 0, 0, 1, 2, 0)
    for middle in range(9):
        taken = merge_frame(left, right, middle, STARTS)
        path = torch.cat([left[:taken], right[taken:]]).argmax(-1).tolist()
        assert [token for token, _ in itertools.groupby(path) if token] == [2, 3, 1, 2]


def test_no_space_is_lost_whose_word_begins_after_the_shared_frames():
    # The second chunk hears the space before the first one does, and then a letter.
    left = frames(2, 0, 1, 3, 0, 0, 0, 1, 0)
    right = frames(2, 0, 1, 3, 1, 0, 0, 0, 0, 2)
    taken = merge_frame(left, right, 6, STARTS)
    path = torch.cat([left[:taken], right[taken:]]).argmax(-1).tolist()
    assert [token for token, _ in itertools.groupby(path) if token] == [2, 1, 3, 1, 2]


def test_without_a_gap_a_blank_or_another_token_is_looked_for():
    # A blank within a word; then none, so that the token changes; then not even that.
    left = right = frames(2, 3, 3, 0, 2, 3)
    assert merge_frame(left, right, 1, STARTS) == 3
    left = right = frames(3, 3, 3, 2, 2, 2)
    assert merge_frame(left, right, 1, STARTS) == 3
    left = right = frames(3, 3, 3)
    assert merge_frame(left, right, 1, STARTS) == 1
    assert merge_frame(left[:0], right[:0], 0, STARTS) == 0


def cut(*paths, pause=3):
    """(tokens, first frame, glue) of each part; the frames carry their numbers."""
    segments, first = [], 0
    for path in paths:
        numbers = torch.arange(first, first + len(path))
        segments.append((frames(*path), numbers[:, None], first))
        first += len(path)
    parts = list(cut_at_pauses(segments, pause, STARTS))
    assert [n for _, e, *_ in parts for n in e.flatten().tolist()] == list(range(first))
    assert all(len(p) == len(e) and e[0] == f for p, e, f, _ in parts if len(p))
    return [(part.argmax(-1).tolist(), start, glue) for part, _, start, glue in parts]


def test_a_pause_ends_a_word():
    # Token 1 begins words; 2 after a pause goes on with none.
    assert cut([1, 2, 0, 0, 2]) == [([1, 2, 0, 0, 2], 0, " ")]
    assert cut([1, 2, 0, 0, 0, 0, 2]) == [([1, 2, 0, 0], 0, " "), ([0, 0, 2], 4, " ")]


def test_a_pause_may_lie_across_segments():
    near, far = cut([1, 0], [0, 2]), cut([1, 0, 0], [0, 2])
    assert [glue for *_, glue in near] == [" ", ""]
    assert [glue for *_, glue in far] == [" ", " "]
    # Nothing but blanks between them is a pause too, if it is long enough.
    assert [glue for *_, glue in cut([1], [0], [2])] == [" ", " ", ""]
    assert [glue for *_, glue in cut([1], [0, 0, 0], [2])] == [" ", " ", " "]
    assert [glue for *_, glue in cut([1], [1])] == [" ", " "]


def test_a_script_without_words_is_not_cut():
    segments = [(frames(1, 0, 0, 0, 0, 2), torch.zeros(6, 1), 0)]
    (part,) = cut_at_pauses(segments, 3, torch.zeros(4, dtype=torch.bool))
    assert part[2:] == (0, "")


AUDIBLE = torch.tensor([False, False, True, True])


def stretches(*paths, longest=100, usual=100):
    """(tokens, first frame, apart) of each stretch; the frames carry their numbers."""
    pauses = Pauses(pause=5, short=2, margin=2, usual=usual, longest=longest)
    segments, first = [], 0
    for path in paths:
        numbers = torch.arange(first, first + len(path))
        segments.append((frames(*path), numbers[:, None], first))
        first += len(path)
    found = list(speech_stretches(segments, AUDIBLE, pauses))
    for stretch in found:
        numbers = torch.arange(stretch.first, stretch.first + len(stretch.log_probs))
        assert torch.equal(stretch.encoded.flatten(), numbers)
    return [(s.log_probs.argmax(-1).tolist(), s.first, s.apart) for s in found]


def test_audio_without_a_pause_stays_as_it_is():
    path = [0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0]
    assert stretches(path) == [(path, 0, False)]
    # Nothing audible: the search may still find something in the first segment.
    assert stretches([0] * 20) == [([0] * 20, 0, False)]
    assert stretches([0] * 20, [0] * 9, [1] * 20) == [([0] * 20, 0, False)]


def test_a_stretch_keeps_only_the_margins_of_its_pauses():
    pause = [0] * 8
    expected = [
        ([0, 0, 2, 1, 3, 0, 0], 6, True),
        ([0, 0, 3, 0, 0], 17, True),
    ]
    path = [*pause, 2, 1, 3, *pause, 3, *pause]
    # Wherever segments part, also within pauses.
    for place in range(1, len(path)):
        assert stretches(path[:place], path[place:]) == expected
    assert stretches(*([token] for token in path)) == expected
    # A space is no sound: it neither ends a pause nor begins one.
    (one, _), (two, _) = [s[:2] for s in stretches([2, *pause[:4], 1, *pause, 3])]
    assert one == [2, 0, 0] and two == [0, 0, 3]


def test_what_is_too_long_is_not_recognised_apart():
    speech = [2, 0, 3, 0]
    found = stretches(speech, speech, speech, [0] * 9, speech, [0] * 9, longest=6)
    assert found == [
        (speech * 2, 0, False),
        (speech + [0], 8, False),
        ([0, 0, *speech, 0], 19, False),
    ]
    assert stretches(speech, [0] * 9, longest=5)[0][2] is True


def test_a_stretch_that_grows_long_is_parted_at_its_longest_pause():
    path = [2, 0, 0, 3, 0, 0, 0, 0, 2, 0, 0, 3, 0, 2, 0, 3]
    assert stretches(path) == [(path, 0, False)]
    expected = [
        ([2, 0, 0, 3, 0, 0], 0, True),
        ([0, 0, 2, 0, 0, 3, 0, 2, 0, 3], 6, True),
    ]
    for place in range(1, len(path)):
        assert stretches(path[:place], path[place:], usual=10) == expected
    # Half of a pause that is shorter than both margins; none that is a usual gap.
    assert stretches([2, 0, 0, 0, 2], usual=3) == [
        ([2, 0], 0, True),
        ([0, 2], 3, True),
    ]
    assert stretches([2, 0, 2, 0, 2], usual=3) == [([2, 0, 2, 0, 2], 0, False)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 0, 0, 0, 1, 2, 3]), min_size=1, max_size=120),
    st.lists(st.integers(1, 119), max_size=6),
    st.integers(8, 40),
    st.integers(3, 40),
)
def test_no_sound_is_lost_or_doubled(path, cuts, longest, usual):
    edges = [0, *sorted({cut for cut in cuts if cut < len(path)}), len(path)]
    pieces = [path[a:b] for a, b in itertools.pairwise(edges)]
    found = stretches(*pieces, longest=longest, usual=usual)
    kept = [token for tokens, *_ in found for token in tokens if token in (2, 3)]
    assert kept == [token for token in path if token in (2, 3)]
    for (tokens, first, _), (_, after, _) in itertools.pairwise(found):
        assert first + len(tokens) <= after
    assert all(len(tokens) <= longest for tokens, _, apart in found if apart)


def test_a_tape_keeps_the_last_samples_and_no_more():
    blocks = [torch.arange(start, start + 7.0) for start in range(0, 700, 7)]
    tape = Tape(blocks, block_samples=5, kept_samples=30)
    for block in tape:
        assert len(block) <= 5
        begin = max(tape.samples - 30, 0)
        expected = torch.arange(begin, tape.samples, dtype=torch.float)
        assert torch.equal(tape.read(begin, tape.samples + 9), expected)
        assert sum(map(len, tape.kept)) < 30 + 5
    assert tape.samples == 700


def test_two_cuts_of_the_same_words_are_one_reading():
    lists = [[(" A", 0.0), (" A B", -1.0)], [(" B C", -1.0), (" C", -2.0), ("", -4.0)]]
    assert merge_nbest(lists, 5) == [
        ("A B C", -1.0),
        ("A C", -2.0),
        ("A B B C", -2.0),
        ("A", -4.0),
        ("A B", -5.0),
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-5, 0), min_size=1, max_size=3), min_size=1, max_size=4
    ),
    st.integers(1, 6),
)
def test_the_best_joint_readings_are_found(scores, count):
    lists = [
        [(f" w{i}{j}", float(score)) for j, score in enumerate(sorted(segment)[::-1])]
        for i, segment in enumerate(scores)
    ]
    best = merge_nbest(lists, count)
    every = sorted(
        (sum(score for _, score in pairs) for pairs in itertools.product(*lists)),
        reverse=True,
    )
    assert [score for _, score in best] == pytest.approx(every[:count])
    assert len({text for text, _ in best}) == len(best)
