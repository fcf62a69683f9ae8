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
from collections.abc import Hashable, Mapping, Sequence

import kenlm
from flashlight.lib.text.decoder import LM, LMState

from hyperconformer.lm.ngram import HOT_LOG10

# The model's state; the last words, where a hot phrase begins with them; and their
# bonus, which the phrase gives back if it breaks off.
History = tuple[kenlm.State, tuple[int, ...], float]


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
    bonuses : dict of int to float
        Added for each word of a hot phrase. Such a word is at least as likely as 1 in
        1000, whatever the model says.
    """

    def __init__(
        self,
        model: kenlm.Model,
        words: Sequence[str],
        weight: float = 1.0,
        phrases: Sequence[tuple[int, ...]] = (),
        bonuses: Mapping[int, float] | None = None,
    ):
        super().__init__()
        self.model, self.words = model, words
        self.weight, self.bonuses = weight * math.log(10), bonuses or {}
        self.phrases = {*phrases}
        self.starts = {phrase[0] for phrase in phrases}
        self.beginnings = {
            phrase[:count] for phrase in phrases for count in range(1, len(phrase) + 1)
        }
        self.unfinished = {
            phrase[:count] for phrase in phrases for count in range(1, len(phrase))
        }
        self.states: dict[Hashable, LMState] = {}
        # What each stands for, and the words that were scored after it.
        self.histories: dict[
            LMState, tuple[History, dict[int, tuple[LMState, float]]]
        ] = {}
        self.beginning = kenlm.State()
        model.BeginSentenceWrite(self.beginning)
        self.begin = self._state(self.beginning)

    def _state(self, after, matched=(), lent=0.0):
        key = (after, matched, lent) if matched else after
        if key not in self.states:
            self.states[key] = state = LMState()
            self.histories[state] = (after, matched, lent), {}
        return self.states[key]

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
        (history, _, lent), _ = self.histories[state]
        score = self.model.BaseScore(history, "</s>", kenlm.State())
        return LMState(), self.weight * score - lent

    def first(self, word: int) -> float:
        """The score of a word at the beginning of a sentence, hot ones with a bonus."""
        text = self.words[word]
        score = self.model.BaseScore(self.beginning, text, kenlm.State())
        if word in self.bonuses:
            return self._hot(score, word)
        return self.weight * score

    def _hot(self, score, word):
        return self.weight * max(score, HOT_LOG10) + self.bonuses.get(word, 0.0)

    def _score(self, history, word):
        before, matched, lent = history
        after = kenlm.State()
        score = self.model.BaseScore(before, self.words[word], after)
        plain = self.weight * score
        if not matched and word not in self.starts:
            return self._state(after), plain
        matched, hot = (*matched, word), self._hot(score, word)
        if matched not in self.beginnings:
            # The phrase breaks off and gives its bonus back; another may begin.
            plain, hot, lent = plain - lent, hot - lent, 0.0
            matched = (word,)
        if matched not in self.beginnings:
            return self._state(after), plain
        # A complete phrase keeps its bonus.
        lent = 0.0 if matched in self.phrases else lent + hot - plain
        if matched not in self.unfinished:
            matched = ()
        return self._state(after, matched, lent), hot
