"""Words with times and confidences: the outcome of recognition."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Word:
    """A word, when it was spoken, and how sure the model is.

    ``confidence`` is the geometric mean of the probabilities of the word's tokens,
    in [0, 1].
    """

    text: str
    start_s: float
    end_s: float
    confidence: float

    def continued(self, other):
        """This word with what turned out to be its end."""
        return Word(
            self.text + other.text,
            self.start_s,
            other.end_s,
            (self.confidence * other.confidence) ** 0.5,
        )


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One reading of an utterance; higher scores (natural logarithms) are better."""

    text: str
    score: float
    tokens: tuple = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class Transcription:
    """What was said: ``str()`` gives the text.

    ``words`` is a tuple of :class:`Word`; ``nbest`` a tuple of :class:`Hypothesis`,
    the best first, with as many as the search was asked for.
    """

    text: str
    words: tuple
    nbest: tuple
    duration_s: float

    def __str__(self):
        return self.text
