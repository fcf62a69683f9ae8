"""Greedy CTC search."""

import torch
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.tokens import BLANK_INDEX, NO_TEXT
from hyperconformer.search.base import Search, Searcher, Token


class GreedySearcher(Searcher):
    """The best token of each frame, collapsed: fast, one hypothesis.

    Its score is the path's log-probability.
    """

    def begin(self, tokenizer: SentencePieceProcessor) -> Search:
        """See :meth:`Searcher.begin`."""
        return GreedySearch(tokenizer)


class GreedySearch(Search):
    """The best token of each frame, repetitions and blanks taken out.

    Example
    -------
    >>> search = GreedySearch(tokenizer=None)
    >>> search.advance(torch.eye(5)[[0, 4, 4]].log())
    >>> search.advance(torch.eye(5)[[4, 0, 4]].log())
    >>> [token[:3] for token in search.tokens]
    [(4, 1, 4), (4, 5, 6)]
    """

    def __init__(self, tokenizer: SentencePieceProcessor):
        super().__init__(tokenizer)
        self.last = BLANK_INDEX

    def advance(self, frames: torch.Tensor) -> None:
        """Take (T, V) log-probabilities of the next frames."""
        values, indices = frames.max(-1)
        for log_prob, index in zip(values.tolist(), indices.tolist()):
            self.score += log_prob
            self.silence = self.silence + 1 if index == BLANK_INDEX else 0
            if index != BLANK_INDEX and index not in NO_TEXT:
                if index == self.last:
                    self.tokens[-1] = self.tokens[-1].held(log_prob)
                else:
                    token = Token(index, self.frames, self.frames + 1, log_prob)
                    self.tokens.append(token)
            self.last = index
            self.frames += 1
