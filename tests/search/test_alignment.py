"""Forced alignment: the best path, and the words on it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.hub.folder import load_model
from hyperconformer.search.alignment import align_tokens, align_words


def collapse(path):
    return [token for token, _ in itertools.groupby(path) if token != 0]


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 2), max_size=3),
    st.integers(0, 2**31),
)
def test_the_path_is_the_best_of_all(count, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(count, 3, generator=generator).log_softmax(-1)
    paths = [
        path
        for path in itertools.product(range(3), repeat=count)
        if collapse(path) == tokens
    ]
    if not paths:
        with pytest.raises(ValueError, match="too few"):
            align_tokens(log_probs, tokens)
        return

    def score(path):
        return sum(log_probs[t, token].item() for t, token in enumerate(path))

    spans = align_tokens(log_probs, tokens)
    assert [span.token for span in spans] == tokens
    path = [0] * count
    for span in spans:
        path[span.start : span.end] = [span.token] * (span.end - span.start)
        mean = log_probs[span.start : span.end, span.token].mean().item()
        assert span.score == pytest.approx(mean, abs=1e-5)
    assert score(path) == pytest.approx(max(map(score, paths)), abs=1e-5)


def test_blanks_cannot_be_aligned():
    with pytest.raises(ValueError, match="blank"):
        align_tokens(torch.zeros(4, 3), [1, 0])
    assert align_tokens(torch.zeros(4, 3), []) == []


def test_words_have_times_and_confidences(tiny_model):
    _, tokenizer = load_model(tiny_model, ["recognizer", "extractor"])
    tokens = [tokenizer.piece_to_id(piece) for piece in ("▁", "C", "A", "▁", "D")]
    space, c, a, _, d = tokens
    path = [0, space, 0, c, 0, 0, a, a, space, d, 0]
    probs = torch.full((len(path), tokenizer.vocab_size()), 1e-6)
    probs[range(len(path)), path] = torch.linspace(0.5, 0.9, len(path))
    first, second = align_words(probs.log(), tokens, tokenizer, 0.04, start_s=10.0)
    assert (first.text, second.text) == ("CA", "D")
    assert first.start_s == pytest.approx(10.12) and first.end_s == pytest.approx(10.32)
    assert second.start_s == pytest.approx(10.36)
    assert second.end_s == pytest.approx(10.40)
    assert second.confidence == pytest.approx(0.5 + 0.04 * 9)
    sure = [0.5 + 0.04 * frame for frame in (3, 6, 7)]
    expected = (sure[0] * (sure[1] * sure[2]) ** 0.5) ** 0.5
    assert first.confidence == pytest.approx(expected)


def test_silence_has_no_words(tiny_model):
    _, tokenizer = load_model(tiny_model, ["recognizer", "extractor"])
    assert align_words(torch.zeros(5, 9), [], tokenizer, 0.04) == ()
