"""The protocol of searchers, for whole utterances and for streams.

A :class:`Searcher` holds what does not change: settings and language models. It begins
a :class:`Search`, which remembers one utterance or one segment of a stream, and which
frames advance. An utterance is one advance over all of its frames, so that a stream
ends with the same hypotheses however its frames are cut.
"""

import abc
import pathlib
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.tokens import WORD_START
from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognition


class Token(NamedTuple):
    """A token, the first frame that says it and the first that does not any more.

    ``total`` is the sum of its log-probabilities over these frames, as the recogniser
    gives them: no language model and no bonus counts.
    """

    token: int
    start: int
    end: int
    total: float

    @property
    def score(self) -> float:
        """The mean log-probability of its frames, as torchaudio's TokenSpan has it."""
        return self.total / (self.end - self.start)

    def held(self, log_prob: float) -> "Token":
        """The token, said by one more frame."""
        return self._replace(end=self.end + 1, total=self.total + log_prob)


class Search(abc.ABC):
    """One utterance, or one segment of a stream, while it is searched.

    What is written here serves a search of one hypothesis, whose ``tokens`` only grow.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.

    Attributes
    ----------
    frames : int
        How many were taken.
    silence : int
        How many of the last ones said nothing, and changed nothing in what is said.
    """

    def __init__(self, tokenizer: SentencePieceProcessor):
        self.tokenizer = tokenizer
        self.tokens: list[Token] = []
        self.frames = self.silence = 0
        self.score = 0.0
        self.ended = False

    @abc.abstractmethod
    def advance(self, frames: torch.Tensor) -> None:
        """Take the next frames.

        Arguments
        ---------
        frames : torch.Tensor
            (T, V) log-probabilities, or the encoder's (T, D) frames, as the searcher's
            ``takes`` says.
        """

    def partial(self) -> tuple[Sequence[Token], str]:
        """What is known so far.

        Returns
        -------
        tokens : sequence of Token
            Of the words that can change no more: later calls begin with them.
        rest : str
            The text after them as it seems now.
        """
        final = len(self.tokens)
        if not self.ended:  # A word is over once the next has begun.
            final = next(filter(self._begins_word, range(final - 1, 0, -1)), 0)
        rest = [token.token for token in self.tokens[final:]]
        return self.tokens[:final], self.tokenizer.decode_ids(rest).strip()

    def finish(self) -> list[Hypothesis]:
        """The hypotheses, the best first, when no frame follows."""
        self.ended = True
        tokens = [token.token for token in self.tokens]
        return [Hypothesis(self.tokenizer.decode_ids(tokens), self.score, (*tokens,))]

    def _begins_word(self, place):
        piece = self.tokenizer.id_to_piece(self.tokens[place].token)
        return piece.startswith(WORD_START)


class Searcher:
    """What every search offers.

    A subclass has :meth:`begin`, or, where it needs the whole utterance,
    :meth:`hypotheses` and :meth:`decode`.

    Attributes
    ----------
    nbest : int
        How many hypotheses it returns at most.
    streams : bool
        Whether it can begin before the utterance ends.
    takes : str
        ``"ctc"``: log-probabilities of the CTC head; ``"encoded"``: the encoder's
        frames.
    """

    nbest: int = 1
    streams: ClassVar[bool] = True
    takes: ClassVar[Literal["ctc", "encoded"]] = "ctc"

    def prepare(
        self,
        tokenizer: SentencePieceProcessor,
        sentences: Sequence[str] = (),
        folder: str | pathlib.Path | None = None,
    ) -> None:
        """Make ready for a recogniser, before the first batch; here nothing to do.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.
        sentences : list of str
            Training transcripts.
        folder : str or pathlib.Path
            The run's folder.
        """

    def begin(self, tokenizer: SentencePieceProcessor) -> Search:
        """Begin an utterance, or a segment of a stream.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        Search

        Raises
        ------
        ValueError
            If the search needs the whole utterance.
        """
        raise ValueError(
            f"{type(self).__name__} needs the whole utterance and cannot stream; "
            "GreedySearcher, CTCSearcher and TransducerSearcher can"
        )

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """Decode one utterance.

        Arguments
        ---------
        frames : torch.Tensor
            (T, V) or (T, D), all of its frames, see ``takes``.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of Hypothesis
            At most ``nbest``, the best first.
        """
        search = self.begin(tokenizer)
        search.advance(frames)
        return search.finish()

    def hypotheses(
        self, recognition: Recognition, tokenizer: SentencePieceProcessor
    ) -> list[list[Hypothesis]]:
        """Decode a batch.

        Arguments
        ---------
        recognition : hyperconformer.model.recognizer.Recognition
            Of the batch.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of list of Hypothesis
            For each utterance at most ``nbest``, the best first.
        """
        frames = recognition.ctc if self.takes == "ctc" else recognition.encoded
        return [
            self.decode(utterance[:length], tokenizer)
            for utterance, length in zip(frames, recognition.lengths.tolist())
        ]

    def texts(
        self, recognition: Recognition, tokenizer: SentencePieceProcessor
    ) -> list[str]:
        """Decode a batch.

        Arguments
        ---------
        recognition : hyperconformer.model.recognizer.Recognition
            Of the batch.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of str
        """
        return [best[0].text for best in self.hypotheses(recognition, tokenizer)]
