"""When each word was spoken: forced alignment by the CTC head."""

import math

import torch
from torchaudio.functional import forced_align, merge_tokens

from hyperconformer.core.tokens import BLANK_INDEX, WORD_START
from hyperconformer.core.words import Word


def align_tokens(log_probs, tokens):
    """The most probable frames of each token, given all of them in their order.

    CTC (Graves et al., ICML 2006): the best path whose collapse is the tokens, found
    by Viterbi's algorithm in ``torchaudio.functional.forced_align``.

    Arguments
    ---------
    log_probs : torch.Tensor
        (T, V) floating, log-probabilities of one utterance; token 0 is the blank.
    tokens : sequence of int
        Without blanks.

    Returns
    -------
    list of torchaudio TokenSpan
        One a token: ``start`` and ``end`` in frames, the end excluded, and ``score``,
        the mean log-probability of its frames.

    Raises
    ------
    ValueError
        If a token is the blank, or the frames are too few for the tokens.

    Example
    -------
    >>> path = torch.tensor([0, 2, 2, 0, 1])
    >>> log_probs = torch.eye(3)[path].clamp(min=1e-6).log()
    >>> [(span.token, span.start, span.end) for span in align_tokens(log_probs, [2, 1])]
    [(2, 1, 3), (1, 4, 5)]
    """
    tokens = list(tokens)
    if not tokens:
        return []
    if BLANK_INDEX in tokens:
        raise ValueError("the tokens hold the blank or an unknown character")
    repeats = sum(a == b for a, b in zip(tokens, tokens[1:]))
    if len(log_probs) < len(tokens) + repeats:
        raise ValueError(
            f"{len(log_probs)} frames are too few for {len(tokens)} tokens, of which "
            f"{repeats} repeat their neighbour"
        )
    path, scores = forced_align(
        log_probs.float().cpu()[None], torch.tensor([tokens]), blank=BLANK_INDEX
    )
    return merge_tokens(path[0], scores[0], blank=BLANK_INDEX)


def align_words(log_probs, tokens, tokenizer, frame_s, start_s=0.0):
    """The words that tokens spell, with times and confidences.

    A CTC model emits a token while it is spoken or shortly after, often in a single
    frame, so that a word lasts from the first frame of its first letter to the last
    frame of its last one.

    Arguments
    ---------
    log_probs : torch.Tensor
        (T, V) floating, of one utterance.
    tokens : sequence of int
        As for :func:`align_tokens`.
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    frame_s : float
        Seconds a frame.
    start_s : float
        When the first frame begins.

    Returns
    -------
    tuple of Word

    Raises
    ------
    ValueError
        As :func:`align_tokens`.
    """
    spans = align_tokens(log_probs, tokens)
    return tuple(spell_words(spans, tokenizer, frame_s, start_s))


def spell_words(spans, tokenizer, frame_s, start_s=0.0):
    """The words that tokens with times spell.

    Arguments
    ---------
    spans : iterable of torchaudio TokenSpan or hyperconformer.search.base.Token
        ``token``, ``start`` and ``end`` in frames, and ``score``, the mean
        log-probability of its frames.
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    frame_s : float
        Seconds a frame.
    start_s : float
        When the first frame begins.

    Returns
    -------
    list of Word
        Only those with a letter.
    """
    words, pieces = [], []

    def close():
        if any(text for text, _ in pieces):
            words.append(_word(pieces, frame_s, start_s))
        pieces.clear()

    for span in spans:
        piece = tokenizer.id_to_piece(span.token)
        if piece.startswith(WORD_START):
            close()
        pieces.append((piece.replace(WORD_START, ""), span))
    close()
    return words


def _word(pieces, frame_s, start_s):
    """One word of its pieces; a space that is a token of its own takes no time."""
    spans = [span for text, span in pieces if text]
    mean = sum(span.score for span in spans) / len(spans)
    return Word(
        text="".join(text for text, _ in pieces),
        start_s=start_s + spans[0].start * frame_s,
        end_s=start_s + spans[-1].end * frame_s,
        confidence=min(1.0, math.exp(mean)),
    )
