"""KenLM's n-grams for flashlight-text's search, with hypotheses that recombine.

Two hypotheses whose last words are the same, as far as an n-gram model sees, have the
same future: only the better one matters. flashlight recombines hypotheses whose states
of the language model are one object, but its own binding of KenLM makes a new state for
every history. Its beam then fills with hypotheses that differ in words of long ago.
Here a state is made once for the words that the model sees.

Hot words are favoured here too: a hypothesis that has begun a phrase differs from one
with the same last words that has not.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import kenlm
from flashlight.lib.text.decoder import LM, LMState

from hyperconformer.lm.ngram import HOT_LOG10


class History(NamedTuple):
    """What the score of the next words depends on.

    ``matched`` are the last words where a hot phrase begins with them, and ``lent``
    what they were favoured by, which is taken back if the phrase does not go on.
    """

    model: kenlm.State
    matched: tuple[int, ...] = ()
    lent: float = 0.0


class NGramLM(LM):
    """An n-gram model of words for one search.

    It remembers every state that was asked for, so a long search begins with a new one.

    Arguments
    ---------
    model : kenlm.Model
        The n-grams.
    words : list of str
        What flashlight numbers from 0 on, as the model writes it.
    weight : float
        Of the model's logarithms to base e.
    phrases : list of tuple of int
        Hot words and phrases, as numbers of words.
    bonus : float
        Added for each word of a hot phrase. Such a word is at least as likely as 1 in
        1000, whatever the model says.
    """

    def __init__(
        self,
        model: kenlm.Model,
        words: Sequence[str],
        weight: float = 1.0,
        phrases: Sequence[tuple[int, ...]] = (),
        bonus: float = 0.0,
    ):
        super().__init__()
        self.model, self.words = model, words
        self.weight, self.bonus = weight * math.log(10), bonus
        self.phrases = {*phrases}
        self.beginnings = {
            phrase[:count] for phrase in phrases for count in range(1, len(phrase) + 1)
        }
        self.unfinished = {
            phrase[:count] for phrase in phrases for count in range(1, len(phrase))
        }
        self.states: dict[History, LMState] = {}
        # The history of each, and the words that were scored after it.
        self.histories: dict[
            LMState, tuple[History, dict[int, tuple[LMState, float]]]
        ] = {}
        begin = kenlm.State()
        model.BeginSentenceWrite(begin)
        self.begin = self._state(History(begin))

    def _state(self, history):
        if history not in self.states:
            self.states[history] = state = LMState()
            self.histories[state] = history, {}
        return self.states[history]

    def start(self, start_with_nothing: bool) -> LMState:
        """The state at the beginning of a sentence."""
        return self.begin

    def score(self, state: LMState, word: int) -> tuple[LMState, float]:
        """The state after a word, and its weighted logarithmic probability."""
        history, scored = self.histories[state]
        if word not in scored:
            scored[word] = self._score(history, word)
        return scored[word]

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """The weighted logarithmic probability that the sentence ends here.

        Each time with another state, or flashlight would keep one hypothesis only.
        """
        history, _ = self.histories[state]
        score = self.model.BaseScore(history.model, "</s>", kenlm.State())
        return LMState(), self.weight * score - history.lent

    def first(self, word: str, is_hot: bool) -> float:
        """The score of a word at the beginning of a sentence, perhaps as a hot word."""
        begin = self.histories[self.begin][0].model
        return self._weighted(self.model.BaseScore(begin, word, kenlm.State()), is_hot)

    def _weighted(self, score, is_hot):
        if is_hot:
            return self.weight * max(score, HOT_LOG10) + self.bonus
        return self.weight * score

    def _score(self, history, word):
        after = kenlm.State()
        score = self.model.BaseScore(history.model, self.words[word], after)
        plain, hot = self._weighted(score, False), self._weighted(score, True)
        matched, lent = (*history.matched, word), history.lent
        if matched not in self.beginnings:
            # What was begun does not go on; the word may begin another phrase.
            plain, hot, lent = plain - lent, hot - lent, 0.0
            matched = (word,)
        if matched not in self.beginnings:
            return self._state(History(after)), plain
        # A whole phrase keeps what it was favoured by.
        lent = 0.0 if matched in self.phrases else lent + hot - plain
        if matched not in self.unfinished:
            matched = ()
        return self._state(History(after, matched, lent)), hot
