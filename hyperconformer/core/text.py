"""Text files, and text as a recogniser writes it: one Unicode form, one letter case.

References, transcripts, n-gram models, pronunciations and hot words are all compared
with what a tokenizer decodes. SentencePiece normalises what it encodes, so that ``É``
and ``E`` with a combining accent are the same tokens; :func:`normalize` gives text that
very form.
"""

import functools
import io
import logging
import pathlib
import unicodedata

from sentencepiece import SentencePieceNormalizer

from hyperconformer.core.store import is_stored, read_bytes
from hyperconformer.core.tokens import WORD_START

logger = logging.getLogger(__name__)

BYTE_ORDER_MARK = "\ufeff"


def read_text(path):
    """Read a UTF-8 text file, without the byte order marks that Windows editors write.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; it may be in an object store (:mod:`hyperconformer.core.store`).

    Returns
    -------
    str

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not UTF-8.
    hyperconformer.core.store.StoreError
        If an object store cannot be read.

    Example
    -------
    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "words.txt"
    >>> _ = file.write_text("GO", encoding="utf-8-sig")
    >>> read_text(file)
    'GO'
    """
    stored = is_stored(path)
    content = read_bytes(path) if stored else pathlib.Path(path).read_bytes()
    try:
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error}): save it as UTF-8"
        ) from error
    # Also within the text: joined files have a mark at each joint.
    return text.replace(BYTE_ORDER_MARK, "")


def normalize(text):
    """The normal form of a text: SentencePiece's default, words between single spaces.

    Unicode's NFC, then SentencePiece's ``nmt_nfkc``, which tokenizers are trained with
    unless another rule is named. Letter case stays.

    Arguments
    ---------
    text : str
        Any.

    Returns
    -------
    str

    Example
    -------
    >>> normalize(" CAFE\\u0301\\u2026 ") == "CAF\\u00c9..."
    True
    """
    # SentencePiece knows the usual order of two accents on a letter only.
    text = _normalizer().normalize(unicodedata.normalize("NFC", text))
    return " ".join(text.replace(WORD_START, " ").split())


@functools.lru_cache(maxsize=1)
def _normalizer():
    return SentencePieceNormalizer(rule_name="nmt_nfkc")


def as_written(text, tokenizer):
    """A text in the Unicode form and the letter case in which a recogniser writes it.

    Arguments
    ---------
    text : str
        Any.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.

    Returns
    -------
    str
        The normalised text; in upper or lower case where that leaves fewer characters
        that the tokenizer does not know.
    """
    text = normalize(text)
    if not unwritable(text, tokenizer):
        return _own_form(text, tokenizer)
    forms = [_own_form(form, tokenizer) for form in (text, text.upper(), text.lower())]
    return min(forms, key=lambda form: len(unwritable(form, tokenizer)))


def write_all(texts, tokenizer, name):
    """Texts as a recogniser writes them; a change of letter case is logged.

    Arguments
    ---------
    texts : list of str
        Any.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    name : str
        Where they are from, for the warning.

    Returns
    -------
    list of str
        As :func:`as_written`.
    """
    normal = [normalize(text) for text in texts]
    # All at once: of a word's encoding, the call is the longer part.
    known = [tokenizer.unk_id() not in tokens for tokens in tokenizer.encode(normal)]
    written = [
        _own_form(text, tokenizer) if is_known else as_written(text, tokenizer)
        for text, is_known in zip(normal, known)
    ]
    changed = [i for i, form in enumerate(written) if normal[i] != form]
    if changed:
        text, form = texts[changed[0]], written[changed[0]]
        logger.warning(
            f"{name}: {len(changed)} of {len(texts)} entries are in another letter "
            f"case than the recogniser writes; {_shorten(text)!r} is taken as "
            f"{_shorten(form)!r}"
        )
    return written


def write_hotword(phrase, tokenizer):
    """A hot word or phrase as a recogniser writes it.

    Raises
    ------
    ValueError
        If it is empty or has characters that the recogniser cannot write.
    """
    written = as_written(phrase, tokenizer)
    if not written or tokenizer.unk_id() in tokenizer.encode(written):
        raise ValueError(
            f"the hot word {phrase!r} is empty or has characters that the recogniser "
            "cannot write"
        )
    return written


def write_references(references, tokenizer, name):
    """References as a recogniser writes them; what it cannot write is logged.

    Arguments
    ---------
    references : list of str
        What is spoken.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    name : str
        Where they are from, for the warnings.

    Returns
    -------
    list of str
        As :func:`as_written`.
    """
    written = write_all(references, tokenizer, name)
    unknown = [set(unwritable(reference, tokenizer)) for reference in written]
    affected = sum(map(bool, unknown))
    if affected:
        logger.warning(
            f"{name}: {affected} of {len(written)} references hold letters that the "
            f"recogniser cannot write: {_name_some(set().union(*unknown))}; every "
            "word with one of them counts as an error"
        )
    return written


def unwritable(text, tokenizer):
    """The characters of a text that a tokenizer does not know.

    Arguments
    ---------
    text : str
        Any.
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.

    Returns
    -------
    list of str
        In their order, repetitions included; spaces are never among them.
    """
    unknown = tokenizer.unk_id()
    if unknown not in tokenizer.encode(text):
        return []
    return [
        character
        for character in text
        if not character.isspace() and unknown in tokenizer.encode(character)
    ]


def _own_form(text, tokenizer):
    """The text as the tokenizer itself normalises it; it may fold letter case."""
    return " ".join(tokenizer.normalize(text).replace(WORD_START, " ").split())


def _name_some(characters, most=10):
    shown = ", ".join(map(repr, sorted(characters)[:most]))
    return shown + (", ..." if len(characters) > most else "")


def _shorten(text, length=40):
    return text if len(text) <= length else text[:length] + "..."
