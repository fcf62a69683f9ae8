"""Word n-gram language models in ARPA format, from a manifest's transcripts.

The decoders read them through KenLM, whose Python package brings no estimator of its
own. Interpolated Witten-Bell smoothing: robust where counts are few, as on the
transcripts of a small corpus. Chen and Goodman, "An empirical study of smoothing
techniques for language modeling", 1999, section 2.3.
"""

import collections
import math
import pathlib

from hyperconformer.corpora.manifest import write_atomically

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
# The probability of a word that never begins anything, by ARPA's custom.
NEVER = -99.0


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
