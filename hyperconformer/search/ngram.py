"""The search that the word n-grams of a model folder ask for."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from sentencepiece import SentencePieceProcessor

from hyperconformer.core.extras import MissingExtraError, import_extra
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.base import Searcher
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.search.lexicon import LexiconSearcher, PhoneSearcher

logger = logging.getLogger(__name__)


def ngram_search(
    ngram: Mapping[str, Any], recognizer: Recognizer, **options: Any
) -> Searcher | None:
    """Choose the search for the n-grams of a model folder.

    A small model, in ARPA's form, is read by :class:`CTCSearcher`. One in KenLM's
    binary form comes with a word list for :class:`LexiconSearcher`, which is faster, or
    for :class:`PhoneSearcher` where the recogniser has a phone head.

    Arguments
    ---------
    ngram : dict
        The folder's, see :func:`hyperconformer.hub.folder.load_model`.
    recognizer : hyperconformer.model.recognizer.Recognizer
        Whose utterances or streams are searched.
    **options
        Options of the search, such as ``nbest`` and ``hotwords``.

    Returns
    -------
    Searcher or None
        None = greedy: there are no n-grams and no options, or the extra ``[lm]``, which
        KenLM's form needs, is not installed; a warning says so.
    """
    if "words" not in ngram:
        return CTCSearcher(**ngram, **options) if ngram or options else None
    try:
        for package in ("kenlm", "pygtrie", "flashlight.lib.text"):
            import_extra(package, "lm", "the n-grams of this model")
    except MissingExtraError as error:
        logger.warning(f"{error}. Without them, it makes more errors")
        return CTCSearcher(**options) if options else None
    if recognizer.phones:
        return PhoneSearcher(recognizer, **ngram, **options)
    return LexiconSearcher(**ngram, **options)


def hotword_search(
    search: Searcher,
    ngram: Mapping[str, Any],
    recognizer: Recognizer,
    tokenizer: SentencePieceProcessor,
    hotwords: Iterable[str],
) -> Searcher:
    """The search of a model folder's n-grams that favours hot words, prepared.

    Arguments
    ---------
    search : object
        The folder's search, prepared: a large word list is not read again.
    ngram, recognizer
        As for :func:`ngram_search`.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    hotwords : iterable of str
        At least one word or phrase.

    Returns
    -------
    Searcher

    Raises
    ------
    ValueError
        If a hot word cannot be written or has no pronunciation.
    """
    if isinstance(search, LexiconSearcher):
        return search.favour(hotwords, tokenizer)
    found = ngram_search(ngram, recognizer, hotwords=hotwords)
    assert found is not None  # there are options
    found.prepare(tokenizer)
    return found
