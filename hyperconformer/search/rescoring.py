"""A neural language model that rescores the hypotheses of a search."""

import dataclasses
import pathlib
from collections.abc import Sequence

from speechbrain.decoders.scorer import TransformerLMRescorer

from hyperconformer.core.text import as_written
from hyperconformer.core.tokens import BLANK_INDEX, BOS_INDEX, EOS_INDEX
from hyperconformer.core.words import Hypothesis
from hyperconformer.hub.folder import load_model


class Rescorer(TransformerLMRescorer):
    """SpeechBrain's rescorer with a language model of :mod:`hyperconformer.lm`.

    The model reads texts in tokens of its own, so that one language model serves
    recognisers of characters and of sub-words. SpeechBrain shares the probability of
    the padding token, which never comes, among the others.

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
            pad_index=BLANK_INDEX,
        )
        self.weight = weight

    def normalize_text(self, text: str) -> str:
        """The text in the language model's letter case; SpeechBrain's is upper case."""
        return as_written(text, self.tokenizer)

    def rescore(self, found: Sequence[Hypothesis]) -> list[Hypothesis]:
        """Add the weighted log-probability of each text, its end included, and sort.

        A text that the language model's tokens cannot spell comes last.
        """
        if not found:
            return []
        scores = self.rescore_hyps([[one.text for one in found]])
        rescored = [
            dataclasses.replace(one, score=one.score + self.weight * score)
            for one, score in zip(found, scores.tolist())
        ]
        return sorted(rescored, key=lambda one: one.score, reverse=True)
