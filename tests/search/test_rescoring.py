"""A neural language model orders the hypotheses of every search anew."""

import dataclasses
import math

import pytest
import torch
from char_tokenizer import make_tokenizer

from hyperconformer.core.words import Hypothesis
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.search.rescoring import Rescorer

WORDS = "BAD CAB DAD ACE".split()


def log_prob(model, tokenizer, text):
    """Of one text alone, token by token, with its end; the begin never follows."""
    tokens = [1, *tokenizer.encode(text), 2]
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]]))[0].double()
    logits[:, 1] = -math.inf
    log_probs = logits.log_softmax(-1)
    return sum(log_probs[place, token].item() for place, token in enumerate(tokens[1:]))


def test_each_text_gets_its_weighted_probability(lm_folder):
    folder, model, tokenizer = lm_folder
    texts = ["BAD CAB", "", "ACE", "dad dad ace bad"]  # in any letter case
    found = [Hypothesis(text, -float(place), ()) for place, text in enumerate(texts)]
    rescored = Rescorer(folder, 0.3).rescore(found)
    expected = [
        dataclasses.replace(
            one, score=one.score + 0.3 * log_prob(model, tokenizer, one.text.upper())
        )
        for one in found
    ]
    expected.sort(key=lambda one: -one.score)
    assert [one.text for one in rescored] == [one.text for one in expected]
    for got, wanted in zip(rescored, expected):
        # float32 sums of 20 terms
        assert got.score == pytest.approx(wanted.score, abs=1e-4)
    assert Rescorer(folder, 0.3).rescore([]) == []


def test_what_the_language_model_cannot_spell_has_a_score(lm_folder):
    folder, model, tokenizer = lm_folder
    (rescored,) = Rescorer(folder, 1.0).rescore([Hypothesis("BЖD", 0.0, ())])
    assert math.isfinite(rescored.score)
    expected = log_prob(model, tokenizer, "BЖD")
    assert rescored.score == pytest.approx(expected, abs=1e-4)
    found = [Hypothesis("Ж", -9.0, ()), Hypothesis("BAD", 9.0, ())]
    assert [one.score for one in Rescorer(folder, 0.0).rescore(found)] == [9.0, -9.0]


def test_letters_that_the_language_model_lacks_are_named(lm_folder, caplog):
    """In a search of any kind, before the first utterance."""
    search = CTCSearcher(lm_folder=lm_folder[0])
    search.prepare(make_tokenizer("bad cab"))
    assert not caplog.records
    search.prepare(make_tokenizer("BAD", "XY"))
    assert "does not know X Y: words with these letters become unlikely" in caplog.text
    with pytest.raises(ValueError, match="can spell no letter that the recogniser"):
        search.prepare(make_tokenizer("XY"))


@pytest.mark.parametrize("kind", ["lexicon", "ctc"])
def test_the_order_of_a_search_is_the_language_models(lm_folder, tmp_path, kind):
    """Also with a recogniser of other tokens than the language model's."""
    folder, model, lm_tokenizer = lm_folder
    tokenizer = make_tokenizer(*WORDS, "XYZ")
    assert tokenizer.vocab_size() != lm_tokenizer.vocab_size()
    torch.manual_seed(0)
    frames = torch.randn(40, tokenizer.vocab_size()).log_softmax(-1)
    if kind == "lexicon":
        pytest.importorskip("flashlight.lib.text.decoder")
        arpa = train_arpa(WORDS, tmp_path / "lm.arpa", 2)
        make = lambda **options: LexiconSearcher(arpa, **options)  # noqa: E731
    else:
        frames = frames[:8, : tokenizer.piece_to_id("X")].log_softmax(-1)
        make = CTCSearcher
    texts = {}
    for weight in (0.0, 1e4):
        search = make(lm_folder=folder, rescore_weight=weight, nbest=20, beam_size=20)
        search.prepare(tokenizer)
        found = search.decode(frames, tokenizer)
        texts[weight] = [one.text for one in found]
    assert len(texts[0.0]) > 2 and sorted(texts[0.0]) == sorted(texts[1e4])
    by_model = [log_prob(model, lm_tokenizer, text) for text in texts[1e4]]
    # In the order of float32 sums, which may swap two that are equal to rounding.
    assert by_model == pytest.approx(sorted(by_model, reverse=True), abs=1e-3)
    assert texts[0.0] != texts[1e4]
