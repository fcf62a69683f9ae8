"""Greedy search of a transducer."""

from sentencepiece import SentencePieceProcessor

from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognition, Recognizer
from hyperconformer.search.base import Searcher
from hyperconformer.search.ctc_beam import _hypothesis


class TransducerSearcher(Searcher):
    """SpeechBrain's greedy search of a transducer: one hypothesis.

    Arguments
    ---------
    recognizer : hyperconformer.model.recognizer.Recognizer
        With a transducer.

    Raises
    ------
    ValueError
        If it has none.
    """

    def __init__(self, recognizer: Recognizer):
        if recognizer.transducer is None:
            raise ValueError("this search needs a transducer, got a recogniser without")
        self.transducer = recognizer.transducer

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
            One for each utterance; its score is its tokens' log-probability.
        """
        found = []
        for frames, length in zip(recognition.encoded, recognition.lengths.tolist()):
            tokens, score, _ = self.transducer.decode(frames[:length])
            found.append([_hypothesis(tokens, score, tokenizer)])
        return found
