"""The protocol of searchers, for whole utterances and for streams.

A :class:`Searcher` holds what does not change: settings and language models. It begins
a :class:`Search`, which remembers one utterance or one segment of a stream, and which
frames advance. An utterance is one advance over all of its frames, so that a stream
ends with the same hypotheses however its frames are cut.
"""

import abc
import math
import pathlib
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.tokens import WORD_START
from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognition
from hyperconformer.search.alignment import align_tokens


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


class BeamSearch(Search):
    """A search that keeps several readings.

    Words that every reading begins with are final. They are aligned with the
    recogniser's log-probabilities, from which their times and confidences come. These
    are kept from the last final word on.

    Attributes
    ----------
    heard : list of torch.Tensor
        (T, V) log-probabilities of the CTC head for the frames from ``first`` on.
    final : int
        How many words are among the tokens, of those that the readings begin with;
        the words ``forgotten`` went before them.
    found : list of Hypothesis
        Those of :meth:`finish`.
    """

    def __init__(self, tokenizer: SentencePieceProcessor):
        super().__init__(tokenizer)
        self.heard: list[torch.Tensor] = []
        self.first = self.final = 0
        self.forgotten: list[str] = []
        self.found: list[Hypothesis] = []

    @abc.abstractmethod
    def readings_now(self) -> tuple[list[str], int]:
        """The words of the best reading, and with how many of them all begin."""

    def partial(self) -> tuple[Sequence[Token], str]:
        """What is known so far, see :meth:`Search.partial`."""
        if self.ended:
            words = self.found[0].text.split()[len(self.forgotten) :]
            self.make_final(words, len(words))
            return self.tokens, ""
        best, count = self.readings_now()
        self.make_final(best, count)
        return self.tokens, " ".join(best[count:])

    def make_final(self, words: Sequence[str], count: int) -> None:
        """Find when the first ``count`` words were said, given those after them."""
        new, self.final = words[self.final : count], count
        if not new:
            return
        tokens = self.tokenizer.encode(" ".join(new))
        following = self.tokenizer.encode(" ".join(words[count:]))
        heard = torch.cat(self.heard)
        try:
            spans = align_tokens(heard, [*tokens, *following])[: len(tokens)]
        except ValueError:  # Another spelling has more tokens than there are frames.
            here = self.first, self.first + 1
            self.tokens += [Token(token, *here, -math.inf) for token in tokens]
            return
        for span in spans:
            start, end = self.first + span.start, self.first + span.end
            total = span.score * (span.end - span.start)
            self.tokens.append(Token(span.token, start, end, total))
        self.heard = [heard[spans[-1].end :]]
        self.first += spans[-1].end


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
            f"{type(self).__name__} needs the whole utterance and cannot stream; the "
            "other searches can"
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
