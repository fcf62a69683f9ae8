"""The protocol of searchers."""

import pathlib
from collections.abc import Callable, Sequence

from sentencepiece import SentencePieceProcessor

from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognition


class Searcher:
    """What every search offers.

    A subclass has ``hypotheses(recognition, tokenizer)``: for each utterance of a
    batch a list of :class:`~hyperconformer.core.words.Hypothesis`, the best first.

    Attributes
    ----------
    nbest : int
        How many it returns at most.
    """

    nbest: int = 1
    hypotheses: Callable[[Recognition, SentencePieceProcessor], list[list[Hypothesis]]]

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
