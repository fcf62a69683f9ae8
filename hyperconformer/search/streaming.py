"""Decoding of a stream: what is known grows, and what is final stays.

SpeechBrain's CTC searchers are not used: ``CTCBaseSearcher.partial_decode_beams`` calls
``partial_decoding`` without its ``wav_len``, and their beams are strings without the
frames of each token, from which the words' times are made here.
"""

import math
from typing import NamedTuple

from hyperconformer.core.tokens import BLANK_INDEX


class Token(NamedTuple):
    """A token, the first frame that says it and the first that does not any more.

    ``log_prob`` is the sum over its frames.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    start: int
    end: int
    log_prob: float

    def held(self, log_prob):
        """The token, said by one more frame."""
        return self._replace(end=self.end + 1, log_prob=self.log_prob + log_prob)


class GreedySearch:
    """The best token of each frame, repetitions and blanks taken out.

    Every token is final as soon as it is there.

    Example
    -------
    >>> import torch
    >>> search = GreedySearch()
    >>> search.advance(torch.eye(3)[[0, 2, 2]].log())
    >>> search.advance(torch.eye(3)[[2, 0, 2]].log())
    >>> [token[:3] for token in search.tokens], search.num_final
    ([(2, 1, 4), (2, 5, 6)], 2)
    """

    def __init__(self):
        self.tokens = []
        self.frames = 0
        self.last = BLANK_INDEX

    def advance(self, log_probs):
        """Take (T, V) log-probabilities of the next frames."""
        values, indices = log_probs.max(-1)
        for log_prob, index in zip(values.tolist(), indices.tolist()):
            if index != BLANK_INDEX and index == self.last:
                self.tokens[-1] = self.tokens[-1].held(log_prob)
            elif index != BLANK_INDEX:
                token = Token(index, self.frames, self.frames + 1, log_prob)
                self.tokens.append(token)
            self.last = index
            self.frames += 1

    @property
    def num_final(self):
        """How many of the tokens can change no more."""
        return len(self.tokens)


class TransducerSearch:
    """Greedy search of a transducer; every token is final as soon as it is there.

    Arguments
    ---------
    transducer : hyperconformer.model.transducer.Transducer
        Which also remembers the tokens so far.
    """

    def __init__(self, transducer):
        self.transducer = transducer
        self.tokens = []
        self.frames = 0
        self.memory = None

    def advance(self, encoded):
        """Take the (T, D) next frames of the encoder."""
        for frame in encoded:
            indices, log_prob, self.memory = self.transducer.decode(
                frame[None], self.memory
            )
            self.tokens += [
                Token(index, self.frames, self.frames + 1, log_prob / len(indices))
                for index in indices
            ]
            self.frames += 1

    @property
    def num_final(self):
        """How many of the tokens can change no more."""
        return len(self.tokens)


class Prefix(NamedTuple):
    """Log-probabilities of a prefix that ends in a blank or in its last token."""

    blank: float
    token: float
    tokens: tuple[Token, ...]

    @property
    def total(self):
        return _add(self.blank, self.token)


class PrefixBeamSearch:
    """The most probable prefixes, over all of their alignments.

    "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
    Recurrent DNNs", arXiv:1408.2873, algorithm 1 without its language model. Final are
    the tokens with which every prefix of the beam begins.

    Arguments
    ---------
    beam_size : int
        Prefixes that are kept.
    min_log_prob : float
        Tokens of a frame below it are not looked at.

    Raises
    ------
    ValueError
        If the beam is empty.

    Example
    -------
    >>> import torch
    >>> search = PrefixBeamSearch(beam_size=4)
    >>> search.advance(torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log())
    >>> [token.index for token in search.tokens]  # 0.64, where the best path is blank
    [1]
    """

    def __init__(self, beam_size=8, min_log_prob=-7.0):
        if beam_size < 1:
            raise ValueError(f"beam_size must be >= 1, got {beam_size}")
        self.beam_size, self.min_log_prob = beam_size, min_log_prob
        self.frames = 0
        self.beam = {(): Prefix(0.0, -math.inf, ())}

    def advance(self, log_probs):
        """Take (T, V) log-probabilities of the next frames."""
        values, indices = log_probs.topk(min(self.beam_size + 1, log_probs.shape[1]))
        for row, tokens in zip(values.tolist(), indices.tolist()):
            kept = {t: p for p, t in zip(row, tokens) if p >= self.min_log_prob}
            kept = kept or {tokens[0]: row[0]}
            self.beam = self._advance_frame(kept)
            self.frames += 1

    def _advance_frame(self, frame):
        grown = {}

        def add(key, tokens, blank=-math.inf, token=-math.inf):
            old = grown.get(key, Prefix(-math.inf, -math.inf, tokens))
            # Of the alignments of a prefix the first, and likeliest, tells the times.
            grown[key] = Prefix(
                _add(old.blank, blank), _add(old.token, token), old.tokens
            )

        for key, prefix in self.beam.items():
            for index, log_prob in frame.items():
                if index == BLANK_INDEX:
                    add(key, prefix.tokens, blank=prefix.total + log_prob)
                    continue
                token = Token(index, self.frames, self.frames + 1, log_prob)
                longer = (*prefix.tokens, token)
                before = prefix.total
                if key and key[-1] == index:
                    same = (*prefix.tokens[:-1], prefix.tokens[-1].held(log_prob))
                    add(key, same, token=prefix.token + log_prob)
                    before = prefix.blank
                add((*key, index), longer, token=before + log_prob)
        best = sorted(grown.items(), key=lambda item: -item[1].total)
        return dict(best[: self.beam_size])

    @property
    def tokens(self):
        """Of the best prefix."""
        return list(next(iter(self.beam.values())).tokens)

    @property
    def num_final(self):
        """How many of the tokens can change no more."""
        keys = list(self.beam)
        shortest, longest = min(keys), max(keys)
        for count, (a, b) in enumerate(zip(shortest, longest)):
            if a != b:
                return count
        return min(map(len, keys))


def _add(a, b):
    """log(exp(a) + exp(b))."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
