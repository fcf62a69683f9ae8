"""CTC beam search frame by frame: the whole utterance's result, and stable words."""

import itertools
import math

import pytest
import torch
from char_tokenizer import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.core.tokens import NO_TEXT
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search import ctc_beam
from hyperconformer.search.ctc_beam import CTCSearcher

WORDS = ["ABE", "BAD", "CAB", "DAB", "DEED"]
TOKENIZER = make_tokenizer(*WORDS)
LETTERS = range(3, TOKENIZER.vocab_size())


def random_frames(count, sharpness=4.0, seed=0):
    """Log-probabilities between noise and speech: many readings, some of them long."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, TOKENIZER.vocab_size()
    scores = sharpness * torch.randn(shape, generator=generator)
    return scores.log_softmax(-1)


def spoken(text, doubt=0.02, seed=0):
    """Frames that say a text nearly surely, each letter once and then a blank."""
    generator = torch.Generator().manual_seed(seed)
    path = [index for token in TOKENIZER.encode(text) for index in (token, 0)]
    probs = doubt * torch.rand(len(path), TOKENIZER.vocab_size(), generator=generator)
    probs[range(len(path)), path] += 1.0
    return (probs / probs.sum(-1, keepdim=True)).log()


def searcher(tmp_path, **options):
    if options.pop("ngram", False):
        sentences = [" ".join(pair) for pair in itertools.permutations(WORDS, 2)]
        options["arpa"] = train_arpa(sentences, tmp_path / "lm.arpa", 3)
    made = CTCSearcher(**options)
    made.prepare(TOKENIZER)
    return made


def advance(search, frames, cuts, on_partial=None):
    """Frames in pieces, with a look at what is known after each."""
    edges = [0, *sorted(cuts), len(frames)]
    for begin, end in itertools.pairwise(edges):
        search.advance(frames[begin:end])
        known = search.partial()
        if on_partial:
            on_partial(*known)
    return search.finish()


KINDS = {
    "plain": {},
    "nbest": {"nbest": 3},
    "n-grams": {"ngram": True},
    "hot words": {"hotwords": ["DAB ABE", "BAD"]},
    "both": {"ngram": True, "hotwords": ["DAB ABE", "BAD", "ACE"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_do_not_matter(tmp_path, monkeypatch, kind):
    """However the frames are cut, and although readings forget what they share."""
    monkeypatch.setattr(ctc_beam, "FORGET_WORDS", 2)
    search = searcher(tmp_path, beam_size=6, **KINDS[kind])
    forgotten = []

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 5), st.lists(st.integers(0, 80), max_size=40))
    def check(seed, cuts):
        frames = random_frames(80, seed=seed)
        pieces = search.begin(TOKENIZER)
        whole = search.begin(TOKENIZER)
        whole.advance(frames)
        expected = whole.finish()
        assert advance(pieces, frames, cuts) == expected
        assert pieces.silence == whole.silence and pieces.frames == 80
        forgotten.append(len(pieces.forgotten))
        # With these frames the first thresholds leave enough readings.
        assert search.decode(frames, TOKENIZER) == expected

    check()
    assert max(forgotten) > 0


def test_a_language_model_rescores_in_the_end(lm_folder):
    folder, _, tokenizer = lm_folder
    search = CTCSearcher(lm_folder=folder, nbest=2, beam_size=6)
    search.prepare(tokenizer)
    frames = random_frames(60)[:, : tokenizer.vocab_size()].log_softmax(-1)
    found = advance(search.begin(tokenizer), frames, range(60))
    assert found == search.decode(frames, tokenizer) and len(found) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_final_words_stay(tmp_path, kind):
    search = searcher(tmp_path, beam_size=8, **KINDS[kind]).begin(TOKENIZER)
    known, early = [], []

    def check(tokens, rest):
        assert tokens[: len(known)] == known
        known[:] = tokens
        early.append(len(tokens))

    frames = torch.cat([random_frames(60), spoken("BAD DAB ABE CAB DEED"), frames_end])
    best = advance(search, frames, range(len(frames)), check)[0]
    tokens, rest = search.partial()
    assert tokens[: len(known)] == known and rest == ""
    assert [token.token for token in tokens] == list(best.tokens)
    assert 0 < early[len(frames) // 2] < len(tokens)
    for token, after in itertools.pairwise(tokens):
        assert token.start < token.end <= after.start
    assert tokens[-1].end <= len(frames)


frames_end = random_frames(40, seed=1)


def test_hot_words_and_ngrams_leave_confidences_alone(tmp_path):
    """The scores of a word are the recogniser's own, whatever made the word win."""
    frames = spoken("BAD DAB", doubt=1e-4)
    b, d = TOKENIZER.encode("BD")[1:]
    frames[2, [b, d]] = torch.tensor([0.6, 0.4]).log()
    heard = {}
    for hotwords, ngram in (((), False), (["DAD"], False), (["DAD"], True)):
        search = searcher(tmp_path, hotwords=hotwords, ngram=ngram).begin(TOKENIZER)
        search.advance(frames)
        assert search.finish()[0].text == ("DAD DAB" if hotwords else "BAD DAB")
        tokens, _ = search.partial()
        for token in tokens:
            expected = frames[token.start : token.end, token.token].sum().item()
            assert math.isclose(token.total, expected, rel_tol=1e-5)
        heard[bool(hotwords), ngram] = tokens
    assert heard[True, False] == heard[True, True]
    assert math.isclose(math.exp(heard[True, False][1].score), 0.4, rel_tol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_stream(tmp_path, kind):
    search = searcher(tmp_path, beam_size=8, **KINDS[kind]).begin(TOKENIZER)
    speech = spoken("BAD DAB ABE CAB DEED ABE DAB BAD")
    sizes = []
    for _ in range(30):
        for frame in speech:
            search.advance(frame[None])
        search.partial()
        sizes.append(
            (
                sum(map(len, search.heard)),
                max(len(beam.text) for beam in search.beams),
                max(len(beam.text_frames) for beam in search.beams),
                len(search.word_scores) + len(search.part_scores),
                len(search.search.matched),
            )
        )
    early, late = (list(map(max, zip(*half))) for half in (sizes[:15], sizes[15:]))
    assert all(b <= 1.1 * a for a, b in zip(early, late)), (early, late)
    said = search.finish()[0].text.split()
    assert len(said) == 240 and len(search.forgotten) > 200


def test_silence_counts_frames_that_change_nothing(tmp_path):
    search = searcher(tmp_path).begin(TOKENIZER)
    frames = spoken("BAD")
    blank = torch.full((5, frames.shape[1]), -9.0)
    blank[:, 0] = 0.0
    search.advance(torch.cat([blank, frames]))
    assert search.silence <= 2
    search.advance(blank)
    assert search.silence >= 5


def test_a_word_without_a_path_has_no_confidence(tmp_path):
    """Tokens that the frames have no room for: the word still stands."""
    search = searcher(tmp_path).begin(TOKENIZER)
    search.advance(spoken("BAD DAB"))
    search.heard, search.first = [search.heard[0][-2:]], len(search.heard[0]) - 2
    assert search.finish()[0].text == "BAD DAB"
    tokens, _ = search.partial()
    assert [token.score for token in tokens] == [-math.inf] * len(tokens)


def test_a_wide_beam_finds_the_most_probable_text():
    """Against the sum over all alignments, of every text."""
    count = 5
    space, a, b = TOKENIZER.encode("AB")
    search = CTCSearcher(beam_size=300, nbest=300)
    search.prepare(TOKENIZER)
    for seed in range(5):
        frames = random_frames(count, sharpness=1.0, seed=seed)
        for mark in {*LETTERS, *NO_TEXT} - {space, a, b}:
            frames[:, mark] = -torch.inf
        frames = frames.log_softmax(-1)
        totals = {}
        for path in itertools.product((0, space, a, b), repeat=count):
            tokens = [token for token, _ in itertools.groupby(path) if token]
            text = " ".join(TOKENIZER.decode_ids(tokens).split())
            score = sum(frames[t, token].item() for t, token in enumerate(path))
            totals[text] = totals.get(text, 0.0) + math.exp(score)
        found = search.begin(TOKENIZER)
        vars(found.search).update(token_prune_min_logp=-99.0, beam_prune_logp=-99.0)
        found.advance(frames)
        best = found.finish()[0]
        assert best.text == max(totals, key=totals.get)
        assert math.isclose(math.exp(best.score), totals[best.text], rel_tol=1e-4)
