"""n-gram models: probabilities that add up, in a file that others can read."""

import math

import pytest

from hyperconformer.ngram import train_arpa

SENTENCES = ["GO ON", "GO HOME", "STOP", "GO ON NOW", "STOP NOW"]
WORDS = ["GO", "ON", "HOME", "STOP", "NOW", "</s>", "<unk>"]


def read(path):
    """ARPA scores and back-offs, by the format's definition."""
    scores, backoffs = {}, {}
    for line in path.read_text().splitlines():
        cells = line.split("\t")
        if len(cells) > 1:
            gram = tuple(cells[1].split())
            scores[gram] = float(cells[0])
            backoffs[gram] = float(cells[2]) if len(cells) > 2 else 0.0
    return scores, backoffs


def score(model, word, history):
    scores, backoffs = model
    if (*history, word) in scores:
        return scores[(*history, word)]
    return backoffs.get(history, 0.0) + score(model, word, history[1:])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_add_up_after_every_history(tmp_path, order):
    model = read(train_arpa(SENTENCES, tmp_path / "lm.arpa", order))
    histories = [(), ("<s>",), ("GO",), ("<s>", "GO"), ("GO", "ON"), ("HOME", "STOP")]
    for history in histories:
        history = history[-(order - 1) :] if order > 1 else ()
        total = sum(10 ** score(model, word, history) for word in WORDS)
        assert total == pytest.approx(1.0, abs=1e-4), history


def test_the_formula(tmp_path):
    model = read(train_arpa(SENTENCES, tmp_path / "lm.arpa", 2))
    # After GO: ON twice, HOME once. In all: 15 words of 6 kinds, ON twice.
    unigram = (2 + 6 * (1 / 7)) / (15 + 6)
    expected = math.log10((2 + 2 * unigram) / (3 + 2))
    assert model[0][("GO", "ON")] == pytest.approx(expected, abs=1e-5)


def test_seen_beats_unseen(tmp_path):
    model = read(train_arpa(SENTENCES, tmp_path / "lm.arpa", 3))
    assert score(model, "ON", ("<s>", "GO")) > score(model, "STOP", ("<s>", "GO"))


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match=">= 1, got 0"):
        train_arpa(SENTENCES, tmp_path / "lm.arpa", 0)
    with pytest.raises(ValueError, match="no sentence"):
        train_arpa([], tmp_path / "lm.arpa")


def test_kenlm_reads_it(tmp_path):
    kenlm = pytest.importorskip("kenlm")
    path = train_arpa(SENTENCES, tmp_path / "lm.arpa", 3)
    model, ours = kenlm.Model(str(path)), read(path)
    words = ["<s>", "GO", "ON", "</s>"]
    expected = sum(
        score(ours, words[i], tuple(words[max(0, i - 2) : i])) for i in range(1, 4)
    )
    assert model.score("GO ON") == pytest.approx(expected, abs=1e-4)
