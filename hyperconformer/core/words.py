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

    def moved(self, seconds, duration_s):
        """This word, so many seconds later, within a recording of a duration.

        Example
        -------
        >>> Word("A", 0.5, 1.0, 1.0).moved(-0.7, 2.0).end_s
        0.3
        >>> Word("A", 2.5, 3.0, 1.0).moved(0.0, 2.0)  # It keeps its length.
        Word(text='A', start_s=1.5, end_s=2.0, confidence=1.0)
        """
        start_s, end_s = (
            min(max(round(time_s + seconds, 6), 0.0), duration_s)
            for time_s in (self.start_s, self.end_s)
        )
        if start_s == end_s:
            length_s = min(self.end_s - self.start_s, duration_s)
            start_s = min(start_s, duration_s - length_s)
            end_s = start_s + length_s
        return dataclasses.replace(self, start_s=start_s, end_s=end_s)

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
