"""KenLM's n-grams for flashlight-text's search, with hypotheses that recombine.

Two hypotheses whose last words are the same, as far as an n-gram model sees, have the
same future: only the better one matters. flashlight recombines hypotheses whose states
of the language model are one object, but its own binding of KenLM makes a new state for
every history. Its beam then fills with hypotheses that differ in words of long ago.
Here a state is made once for the words that the model sees.
"""

from collections.abc import Sequence

import kenlm
from flashlight.lib.text.decoder import LM, LMState


class NGramLM(LM):
    """An n-gram model of words for one search.

    It remembers every state that was asked for, so a long search begins with a new one.

    Arguments
    ---------
    model : kenlm.Model
        The n-grams.
    words : list of str
        What flashlight numbers from 0 on, as the model writes it.
    """

    def __init__(self, model: kenlm.Model, words: Sequence[str]):
        super().__init__()
        self.model, self.words = model, words
        self.states: dict[kenlm.State, LMState] = {}
        # KenLM's state of each, and the words that were scored after it.
        self.histories: dict[
            LMState, tuple[kenlm.State, dict[int, tuple[LMState, float]]]
        ] = {}
        begin = kenlm.State()
        model.BeginSentenceWrite(begin)
        self.begin = self._state(begin)

    def _state(self, history):
        if history not in self.states:
            self.states[history] = state = LMState()
            self.histories[state] = history, {}
        return self.states[history]

    def start(self, start_with_nothing: bool) -> LMState:
        """The state at the beginning of a sentence."""
        return self.begin

    def score(self, state: LMState, word: int) -> tuple[LMState, float]:
        """The state after a word, and its logarithmic probability to base 10."""
        history, scored = self.histories[state]
        if word not in scored:
            scored[word] = self._score(history, self.words[word])
        return scored[word]

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """The logarithmic probability to base 10 that the sentence ends here.

        Each time with another state, or flashlight would keep one hypothesis only.
        """
        history, _ = self.histories[state]
        return LMState(), self.model.BaseScore(history, "</s>", kenlm.State())

    def _score(self, history, word):
        after = kenlm.State()
        score = self.model.BaseScore(history, word, after)
        return self._state(after), score
