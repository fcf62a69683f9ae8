"""Searches over a stream: exact, stable, and the same however the frames are cut."""

import itertools
import math

import pytest
import torch
from speechbrain.decoders.ctc import ctc_greedy_decode

from hyperconformer.search.streaming import GreedySearch, PrefixBeamSearch


def indices(search):
    return [token.index for token in search.tokens]


def log_probs(frames, vocab, sharpness=2.0):
    return (sharpness * torch.randn(frames, vocab)).log_softmax(-1)


def test_greedy_equals_speechbrains():
    frames = log_probs(60, 4)
    search = GreedySearch()
    for piece in frames.split(7):
        search.advance(piece)
    assert indices(search) == ctc_greedy_decode(frames[None], torch.ones(1), 0)[0]
    for token in search.tokens:
        best = frames.argmax(-1)[token.start : token.end]
        assert (best == token.index).all()
        expected = frames.max(-1).values[token.start : token.end].sum().item()
        assert math.isclose(token.log_prob, expected, rel_tol=1e-5)


def test_a_wide_beam_finds_the_most_probable_text():
    """Against the sum over all alignments, of every text."""
    frames, vocab = 5, 3
    for _ in range(10):
        probs = log_probs(frames, vocab, sharpness=1.0)
        totals = {}
        for path in itertools.product(range(vocab), repeat=frames):
            text = tuple(k for k, _ in itertools.groupby(path) if k)
            score = sum(probs[t, k].item() for t, k in enumerate(path))
            totals[text] = totals.get(text, 0.0) + math.exp(score)
        search = PrefixBeamSearch(beam_size=200, min_log_prob=-math.inf)
        search.advance(probs)
        best = max(totals, key=totals.get)
        assert tuple(indices(search)) == best
        total = math.exp(search.beam[best].total)
        assert math.isclose(total, totals[best], rel_tol=1e-5)


def test_final_tokens_stay_and_cuts_do_not_matter():
    frames = log_probs(80, 6, sharpness=3.0)
    whole = PrefixBeamSearch()
    whole.advance(frames)
    search, final, early = PrefixBeamSearch(), [], 0
    for frame in frames.split(1):
        search.advance(frame)
        now = indices(search)[: search.num_final]
        assert now[: len(final)] == final
        final = now
        early = max(early, search.num_final if search.frames < 60 else 0)
    assert early > 0
    assert search.tokens == whole.tokens
    for token, after in zip(search.tokens, search.tokens[1:]):
        assert token.start < token.end <= after.start


def test_an_empty_beam_is_refused():
    with pytest.raises(ValueError, match="beam_size must be >= 1, got 0"):
        PrefixBeamSearch(0)
