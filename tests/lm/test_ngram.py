"""n-gram models: probabilities that add up, in a file that others can read."""

import math
import unicodedata

import pytest
from char_tokenizer import make_tokenizer

from hyperconformer.lm.ngram import NGramScorer, train_arpa

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


class TestNGramScorer:
    """The same scores as KenLM's, from the file alone."""

    def scorer(self, folder, order=3):
        path = train_arpa(SENTENCES, folder / "lm.arpa", order)
        return NGramScorer(path, weight=0.4, bonus=0.7)

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_a_sentence_is_scored_by_the_files_definition(self, tmp_path, order):
        scorer = self.scorer(tmp_path, order)
        model = read(tmp_path / "lm.arpa")
        state, words = scorer.get_start_state(), ["<s>"]
        for word, last in [("GO", False), ("HOME", False), ("NOW", True)]:
            history = tuple(words)[len(words) - min(order - 1, len(words)) :]
            expected = score(model, word, history)
            words.append(word)
            if last:
                history = tuple(words)[len(words) - min(order - 1, len(words)) :]
                expected += score(model, "</s>", history)
            got, state = scorer.score(state, word, is_last_word=last)
            assert got == pytest.approx(0.4 * expected * math.log(10) + 0.7, abs=1e-6)

    def test_words_are_taken_as_the_recogniser_writes_them(self, tmp_path, caplog):
        tokenizer = make_tokenizer(*SENTENCES, "CAF\u00c9")
        sentences = [*SENTENCES, "CAF\u00c9 NOW"]
        own = train_arpa(sentences, tmp_path / "own.arpa", 3)
        others = {
            "lower": [text.lower() for text in sentences],
            "title": [text.title() for text in sentences],
            "decomposed": [unicodedata.normalize("NFD", text) for text in sentences],
        }
        expected = NGramScorer(own, 0.4, 0.7, tokenizer)
        assert not caplog.records
        for name, changed in others.items():
            path = train_arpa(changed, tmp_path / f"{name}.arpa", 3)
            path.write_text(path.read_text("utf-8"), encoding="utf-8-sig")
            scorer = NGramScorer(path, 0.4, 0.7, tokenizer)
            for text in (*sentences, "NOW FLY GO"):
                state, other = scorer.get_start_state(), expected.get_start_state()
                for word in text.split():
                    got, state = scorer.score(state, word)
                    wanted, other = expected.score(other, word)
                    assert got == pytest.approx(wanted, abs=1e-9), (name, word)
            for begun in ("HO", "CAF", "hx", "HX"):
                wanted = expected.score_partial_token(begun)
                assert scorer.score_partial_token(begun) == wanted
            said = f"{name}.arpa: " in caplog.text and "letter case" in caplog.text
            assert said == (name != "decomposed")

    def test_of_words_that_are_written_alike_the_likeliest_counts(self, tmp_path):
        tokenizer = make_tokenizer("GO ON")
        path = train_arpa(["go on", "Go on", "go"], tmp_path / "lm.arpa", 1)
        scorer, plain = NGramScorer(path, 1, 0, tokenizer), NGramScorer(path, 1, 0)
        assert scorer.words == {"GO": "go", "ON": "on"}
        assert scorer.score((), "GO")[0] == plain.score((), "go")[0]

    def test_a_model_in_other_letters_is_refused_or_named(self, tmp_path, caplog):
        tokenizer = make_tokenizer("GO ON")
        path = train_arpa(["ja da", "du"], tmp_path / "lm.arpa", 1)
        with pytest.raises(ValueError, match="lm.arpa: 3 of its 3 words .* da, du, ja"):
            NGramScorer(path, 1.0, 0.0, tokenizer)
        path = train_arpa(["go ja da", "du"], tmp_path / "lm.arpa", 1)
        NGramScorer(path, 1.0, 0.0, tokenizer)
        assert "3 of its 4 words have letters" in caplog.text

    def test_unknown_words_and_their_beginnings_cost(self, tmp_path):
        scorer = self.scorer(tmp_path)
        start = scorer.get_start_state()
        assert scorer.score(start, "GOING")[0] < scorer.score(start, "ON")[0] - 5
        assert scorer.score_partial_token("HO") == 0.0
        assert scorer.score_partial_token("HX") == -10.0
        assert scorer.score_partial_token("HXXXXXXXX") == -15.0

    @pytest.mark.parametrize(
        "text, expected",
        [
            ("GO HOME", [0.4073, 0.131]),
            ("NOW NOW GO ON", [-0.599, -0.5373, -0.4173, 0.0604]),
            ("FLY GO ON", [-10.2909, 0.0222, 0.0604]),
        ],
    )
    def test_what_kenlm_gave(self, tmp_path, text, expected):
        """Recorded from SpeechBrain's KenlmScorer, which must be compiled."""
        scorer, words = self.scorer(tmp_path), text.split()
        state = scorer.get_start_state()
        for index, word in enumerate(words):
            score, state = scorer.score(state, word, index == len(words) - 1)
            assert score == pytest.approx(expected[index], abs=1e-4)

    def test_kenlm_agrees(self, tmp_path):
        kenlm = pytest.importorskip("kenlm")
        pytest.importorskip("pygtrie")
        from speechbrain.integrations.decoders.kenlm_scorer import KenlmScorer

        ours = self.scorer(tmp_path)
        model = kenlm.Model(str(tmp_path / "lm.arpa"))
        theirs = KenlmScorer(model, set(ours.words), alpha=0.4, beta=0.7)
        for text in ("GO HOME", "HOME", "NOW NOW GO ON", "FLY GO ON", "GO FLY AWAY"):
            state, other = ours.get_start_state(), theirs.get_start_state()
            words = text.split()
            for index, word in enumerate(words):
                last = index == len(words) - 1
                got, state = ours.score(state, word, last)
                expected, other = theirs.score(other, word, last)
                assert got == pytest.approx(expected, abs=1e-4), (text, word)
        for begun in ("", "G", "GOX", "STOPPING"):
            expected = pytest.approx(theirs.score_partial_token(begun))
            assert ours.score_partial_token(begun) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "hello",
            "\0\1",
            "\\data\\\nngram 1=1\n",
            "\\data\\\nngram 1=1\n\n\\1-grams:\nnan\tA\n\n\\end\\\n",
            "\\data\\\nngram 2=1\n\n\\2-grams:\n-1\tA B\n\n\\end\\\n",
        ],
    )
    def test_another_file_is_refused(self, tmp_path, text):
        (tmp_path / "a.arpa").write_text(text)
        with pytest.raises(ValueError, match="a.arpa is no ARPA file"):
            NGramScorer(tmp_path / "a.arpa", 1.0, 0.0)
