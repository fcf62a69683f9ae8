"""Greedy search: SpeechBrain's result, and the same however the frames are cut."""

import math

import torch
from char_tokenizer import make_tokenizer
from speechbrain.decoders.ctc import ctc_greedy_decode

from hyperconformer.search.greedy import GreedySearcher

TOKENIZER = make_tokenizer("CAB DAD")  # unknown, begin, end, the space and A to D


def log_probs(frames):
    scores = 2 * torch.randn(frames, TOKENIZER.vocab_size())
    scores[:, 1:3] = -torch.inf
    return scores.log_softmax(-1)


def test_it_equals_speechbrains():
    frames = log_probs(60)
    search = GreedySearcher().begin(TOKENIZER)
    for piece in frames.split(7):
        search.advance(piece)
    expected = ctc_greedy_decode(frames[None], torch.ones(1), 0)[0]
    assert [token.token for token in search.tokens] == expected
    for token in search.tokens:
        best = frames.argmax(-1)[token.start : token.end]
        assert (best == token.token).all()
        mean = frames.max(-1).values[token.start : token.end].mean().item()
        assert math.isclose(token.score, mean, rel_tol=1e-5)
    (found,) = search.finish()
    assert GreedySearcher().decode(frames, TOKENIZER) == [found]
    total = math.fsum(frames.max(-1).values.tolist())
    assert math.isclose(found.score, total, rel_tol=len(frames) * 2**-53)
    assert found.text == TOKENIZER.decode_ids(expected)


def test_a_word_is_final_once_the_next_has_begun():
    space, a, b = TOKENIZER.encode("AB")
    path = [space, a, 0, b, 0, 0, space, 0, a, 1, b]  # 1 begins a sentence: no text
    frames = torch.full((len(path), TOKENIZER.vocab_size()), -9.0)
    frames[range(len(path)), path] = 0.0
    search, seen = GreedySearcher().begin(TOKENIZER), []
    for frame in frames:
        search.advance(frame[None])
        tokens, rest = search.partial()
        seen.append(([token.token for token in tokens], rest, search.silence))
    ab = [space, a, b]
    assert seen[3:7] == [
        ([], "AB", 0),
        ([], "AB", 1),
        ([], "AB", 2),
        (ab, "", 0),
    ]
    assert seen[-1][:2] == (ab, "AB")
    assert search.finish()[0].text == "AB AB"
    assert search.partial() == (search.tokens, "")
