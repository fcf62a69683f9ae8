"""Greedy search of a transducer."""

from typing import ClassVar, Literal

import torch
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.tokens import NO_TEXT
from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.model.transducer import Transducer
from hyperconformer.search.base import Search, Searcher, Token


class TransducerSearcher(Searcher):
    """SpeechBrain's greedy search of a transducer: one hypothesis.

    Its score is its tokens' log-probability.

    Arguments
    ---------
    recognizer : hyperconformer.model.recognizer.Recognizer
        With a transducer.

    Raises
    ------
    ValueError
        If it has none.
    """

    takes: ClassVar[Literal["ctc", "encoded"]] = "encoded"

    def __init__(self, recognizer: Recognizer):
        if recognizer.transducer is None:
            raise ValueError("this search needs a transducer, got a recogniser without")
        self.transducer = recognizer.transducer

    def begin(self, tokenizer: SentencePieceProcessor) -> Search:
        """See :meth:`Searcher.begin`."""
        return TransducerSearch(tokenizer, self.transducer)

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """See :meth:`Searcher.decode`.

        At once, which is faster than frame by frame and says the same.
        """
        tokens, score, _ = self.transducer.decode(frames)
        tokens = [token for token in tokens if token not in NO_TEXT]
        return [Hypothesis(tokenizer.decode_ids(tokens), score, tuple(tokens))]


class TransducerSearch(Search):
    """The best tokens of each frame after those before.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    transducer : hyperconformer.model.transducer.Transducer
        What says them; ``memory`` is what it remembers of the tokens.
    """

    def __init__(self, tokenizer: SentencePieceProcessor, transducer: Transducer):
        super().__init__(tokenizer)
        self.transducer = transducer
        self.memory: tuple[torch.Tensor, ...] | None = None

    def advance(self, frames: torch.Tensor) -> None:
        """Take the (T, D) next frames of the encoder."""
        if self.memory is None:
            _, _, self.memory = self.transducer.decode(frames[:0])
        while True:
            blanks = self.transducer.leading_blanks(frames, self.memory)
            self.silence += blanks
            self.frames += blanks
            if blanks == len(frames):
                return
            frames = frames[blanks:]
            # Alone, as SpeechBrain does not say which frame a token is from.
            indices, log_prob, self.memory = self.transducer.decode(
                frames[:1], self.memory
            )
            self.score += log_prob if indices else 0.0
            self.silence = 0 if indices else self.silence + 1
            self.tokens += [
                Token(index, self.frames, self.frames + 1, log_prob / len(indices))
                for index in indices
                if index not in NO_TEXT
            ]
            self.frames += 1
            frames = frames[1:]
