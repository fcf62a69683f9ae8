"""Greedy CTC search."""

from sentencepiece import SentencePieceProcessor
from speechbrain.decoders.ctc import filter_ctc_output

from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognition
from hyperconformer.search.base import Searcher
from hyperconformer.search.ctc_beam import _hypothesis


class GreedySearcher(Searcher):
    """The best token of each frame, collapsed: fast, one hypothesis."""

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
            One for each utterance; its score is the path's log-probability.
        """
        found = []
        for log_probs, length in zip(recognition.ctc, recognition.lengths.tolist()):
            scores, path = log_probs[:length].max(dim=-1)
            tokens = filter_ctc_output(path.tolist(), blank_id=BLANK_INDEX)
            found.append([_hypothesis(tokens, scores.sum().item(), tokenizer)])
        return found
