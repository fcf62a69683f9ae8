"""Word n-gram language models in ARPA format: estimated, and read by the decoders.

KenLM's Python package brings no estimator and must be compiled, so small models do
without it: :class:`NGramScorer`. Interpolated Witten-Bell smoothing:
robust where counts are few, as on the transcripts of a small corpus. Chen and Goodman,
"An empirical study of smoothing techniques for language modeling", 1999, section 2.3.
"""

import bisect
import collections
import io
import logging
import math
import pathlib

from speechbrain.lm.arpa import read_arpa
from speechbrain.lm.ngram import BackoffNgramLM

from hyperconformer.core.files import write_atomically
from hyperconformer.core.text import read_text, unwritable, write_all

logger = logging.getLogger(__name__)

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
# The probability of a word that never begins anything, by ARPA's custom.
NEVER = -99.0
# KenLM's own limit is 6 unless it is compiled otherwise.
MAX_ORDER = 10
# The least probability of a hot word, and that of one which the model does not know.
HOT_LOG10 = -3.0
# Of a logarithm; by custom -99 is no probability at all.
MAX_SIZE = 1000
# What SpeechBrain's KenlmScorer adds for an unknown word, and up to which length.
UNKNOWN_OFFSET, UNKNOWN_LENGTH = -10.0, 6


def train_arpa(sentences, path, order=3):
    """Estimate an n-gram model and write it.

    With c(h w) counts, c(h) their sum and t(h) the number of different words after
    the history h::

        P(w | h) = (c(h w) + t(h) P(w | h')) / (c(h) + t(h))

    where h' is h without its first word; words never seen after h get the back-off
    t(h) / (c(h) + t(h)) times P(w | h'). Below the unigrams all words, the unknown
    one among them, are equally likely.

    Arguments
    ---------
    sentences : iterable of str
        Words separated by blanks.
    path : str or pathlib.Path
        The file to write.
    order : int
        Longest n-gram, at least 1.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If the order is below 1 or there is no sentence.

    Example
    -------
    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "lm.arpa"
    >>> print(train_arpa(["GO", "GO ON"], file, order=2).read_text().splitlines()[1])
    ngram 1=5
    """
    if order < 1:
        raise ValueError(f"the order of an n-gram model must be >= 1, got {order}")
    followers = _count(sentences, order)
    if not followers:
        raise ValueError("no sentence to train an n-gram model on")
    vocabulary = {*followers[()], UNKNOWN}
    uniform = 1 / len(vocabulary)

    def probability(word, history):
        counts = followers[history]
        kinds = len(counts)
        lower = probability(word, history[1:]) if history else uniform
        return (counts[word] + kinds * lower) / (sum(counts.values()) + kinds)

    def backoff(history):
        counts = followers.get(history)
        if counts is None:
            return None
        return math.log10(len(counts) / (sum(counts.values()) + len(counts)))

    grams = [[] for _ in range(order)]
    for word in sorted({*vocabulary, BEGIN}):
        score = NEVER if word == BEGIN else math.log10(probability(word, ()))
        grams[0].append((score, (word,), backoff((word,))))
    for history in sorted(history for history in followers if history):
        for word in sorted(followers[history]):
            gram = (*history, word)
            score = math.log10(probability(word, history))
            longest = len(gram) == order
            grams[len(history)].append(
                (score, gram, None if longest else backoff(gram))
            )
    path = pathlib.Path(path)
    # Every process of a distributed run writes it.
    write_atomically(path, _format(grams).encode())
    return path


def _count(sentences, order):
    """History to a count of the words after it, for histories of every length."""
    followers = collections.defaultdict(collections.Counter)
    for sentence in sentences:
        words = [BEGIN, *sentence.split(), END]
        for position in range(1, len(words)):
            for length in range(min(order - 1, position) + 1):
                history = tuple(words[position - length : position])
                followers[history][words[position]] += 1
    return dict(followers)


def _format(grams):
    lines = ["\\data\\"]
    lines += [f"ngram {n}={len(rows)}" for n, rows in enumerate(grams, start=1)]
    for n, rows in enumerate(grams, start=1):
        lines += ["", f"\\{n}-grams:"]
        for score, gram, backoff in rows:
            tail = "" if backoff is None else f"\t{backoff:.6f}"
            lines.append(f"{score:.6f}\t{' '.join(gram)}{tail}")
    return "\n".join([*lines, "", "\\end\\", ""])


class NGramScorer:
    """Scores words within SpeechBrain's CTC beam search, without KenLM.

    The methods and the scores of SpeechBrain's ``KenlmScorer``; a model of millions of
    n-grams is better read by that one. A state is the tuple of the words before.

    Arguments
    ---------
    arpa : str or pathlib.Path
        The model, an ARPA file.
    weight : float
        Factor of the natural logarithm of a word's probability.
    bonus : float
        Added for each word.
    tokenizer : sentencepiece.SentencePieceProcessor, optional
        The recogniser's: words are taken in its Unicode form and letter case. None =
        as they stand.

    Attributes
    ----------
    order : int
        Longest n-gram.
    words : dict of str to str
        Each word, as the recogniser writes it, to its form in the model.

    Raises
    ------
    ValueError
        If the file is no ARPA file, or the recogniser can write none of its words.
    """

    def __init__(self, arpa, weight, bonus, tokenizer=None):
        try:
            text = read_text(arpa)
            # SpeechBrain's reader waits forever for the end of half a file.
            if text.rstrip().rpartition("\n")[2].strip() != "\\end\\":
                raise ValueError("it does not end with \\end\\")
            _, ngrams, backoffs = read_arpa(io.StringIO(text))
            self.model = BackoffNgramLM(ngrams, backoffs)
            words = sorted(set(ngrams[1][()]) - {BEGIN, END, UNKNOWN})
            _check(ngrams, backoffs)
        # SpeechBrain's reader leaves a name unbound where a file breaks off.
        except (ValueError, KeyError, IndexError, UnboundLocalError) as error:
            raise ValueError(f"{arpa} is no ARPA file: {error}") from error
        if not words:
            raise ValueError(f"{arpa} has no words")
        self.order = self.model.top_order
        self.weight, self.bonus = weight, bonus
        # Of several that are written alike, the last one and most probable is taken.
        words.sort(key=ngrams[1][()].get)
        written = _write_words(words, tokenizer, arpa) if tokenizer else words
        self.words = dict(zip(written, words))
        self.sorted_words = sorted(self.words)

    def get_start_state(self):
        """The state at the beginning of a sentence."""
        return self._state((BEGIN,))

    def score(self, state, word, is_last_word=False):
        """Score a word.

        Arguments
        ---------
        state : tuple of str
            The words before.
        word : str
            The word.
        is_last_word : bool
            Whether the sentence ends behind it.

        Returns
        -------
        score : float
            ``weight * ln P(word | state) + bonus``; far lower for unknown words.
        state : tuple of str
            With the word.
        """
        known = word in self.words
        token = self.words.get(word, UNKNOWN)
        score = self.model.logprob(token, state)
        state = self._state((*state, token))
        if not known:
            # Without the token UNKNOWN, the model gives an unknown word nothing.
            score = max(score, NEVER) + UNKNOWN_OFFSET
        if is_last_word:
            score += self.model.logprob(END, state)
        return self.weight * score * math.log(10) + self.bonus, state

    def score_partial_token(self, beginning):
        """Score the letters of a word so far: 0, or less where no word begins so."""
        # The first word that is not before it in the alphabet begins with it, if any.
        place = bisect.bisect_left(self.sorted_words, beginning)
        if any(w.startswith(beginning) for w in self.sorted_words[place : place + 1]):
            return 0.0
        return UNKNOWN_OFFSET * max(1.0, len(beginning) / UNKNOWN_LENGTH)

    def _state(self, words):
        return words[max(0, len(words) - self.order + 1) :]


def _write_words(words, tokenizer, arpa):
    """Words as a recogniser writes them; those that it cannot are counted."""
    written = write_all(words, tokenizer, arpa)
    bad = [word for word in written if unwritable(word, tokenizer)]
    if 2 * len(bad) > len(words):
        shown = ", ".join(sorted(bad)[:3])
        problem = (
            f"{arpa}: {len(bad)} of its {len(words)} words have letters that the "
            f"recogniser cannot write, such as {shown}"
        )
        if len(bad) == len(words):
            raise ValueError(f"{problem}: it is no model for this recogniser")
        logger.warning(problem)
    return written


def _check(ngrams, backoffs):
    """SpeechBrain's reader takes any order and any number."""
    if sorted(ngrams) != list(range(1, len(ngrams) + 1)) or len(ngrams) > MAX_ORDER:
        raise ValueError(f"the orders must be 1, 2, ... up to {MAX_ORDER} at most")
    tables = [table for order in ngrams.values() for table in order.values()]
    for table in [*tables, *backoffs.values()]:
        if not all(abs(value) <= MAX_SIZE for value in table.values()):
            raise ValueError(f"logarithms go from -{MAX_SIZE} to {MAX_SIZE}")
