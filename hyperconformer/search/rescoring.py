"""A neural language model that rescores the hypotheses of a search."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor
from speechbrain.decoders.scorer import TransformerLMRescorer

from hyperconformer.core.text import as_written, unwritable
from hyperconformer.core.tokens import (
    BLANK_INDEX,
    BOS_INDEX,
    EOS_INDEX,
    NO_TEXT,
    WORD_START,
    list_pieces,
)
from hyperconformer.core.words import Hypothesis
from hyperconformer.hub.folder import load_model

logger = logging.getLogger(__name__)


class Rescorer(TransformerLMRescorer):
    """SpeechBrain's rescorer with a language model of :mod:`hyperconformer.lm`.

    The model reads texts in tokens of its own, so that one language model serves
    recognisers of characters and of sub-words. A character that they lack is the
    unknown token, which the model expects nearly nowhere. The begin of a sentence,
    which never follows anything, has no probability.

    Arguments
    ---------
    lm_folder : str or pathlib.Path
        Model folder of a language model (``hparams/lm.yaml``), or the output folder of
        its training.
    weight : float
        Of its log-probabilities.

    Raises
    ------
    FileNotFoundError
        If the language model is missing.
    ValueError
        If the folder holds another kind of model.
    """

    def __init__(self, lm_folder: str | pathlib.Path, weight: float):
        config, tokenizer = load_model(lm_folder, ["language_model"])
        super().__init__(
            config["language_model"],
            tokenizer,
            device="cpu",
            bos_index=BOS_INDEX,
            eos_index=EOS_INDEX,
            pad_index=BOS_INDEX,  # SpeechBrain gives it no probability
        )
        self.name, self.weight = str(lm_folder), weight

    def check_letters(self, tokenizer: SentencePieceProcessor) -> None:
        """Warn of letters that a recogniser writes and the language model lacks.

        Raises
        ------
        ValueError
            If the language model knows no letter of the recogniser.
        """
        pieces = [
            piece.replace(WORD_START, "")
            for token, piece in enumerate(list_pieces(tokenizer))
            if token not in (BLANK_INDEX, *NO_TEXT)
        ]
        letters = sorted({letter for piece in pieces for letter in piece})
        text = as_written(" ".join(letters), self.tokenizer)
        lacking = unwritable(text, self.tokenizer)
        if len(lacking) == len(letters):
            raise ValueError(
                f"{self.name} can spell no letter that the recogniser writes: it is no "
                "language model for this recogniser"
            )
        if lacking:
            logger.warning(
                f"the language model {self.name} does not know {' '.join(lacking)}: "
                "words with these letters become unlikely"
            )

    def normalize_text(self, text: str) -> str:
        """The text in the language model's letter case; SpeechBrain's is upper case."""
        return as_written(text, self.tokenizer)

    def rescore(self, found: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Add the weighted log-probability of each text, its end included, and sort."""
        if not found:
            return []
        scores = self.rescore_hyps([[one.text for one in found]])
        rescored = [
            dataclasses.replace(one, score=one.score + self.weight * score)
            for one, score in zip(found, scores.tolist())
        ]
        return sorted(rescored, key=lambda one: one.score, reverse=True)
