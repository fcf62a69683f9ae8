"""One Unicode form and one letter case for all that is compared with a transcript."""

import logging
import shutil
import unicodedata

import pytest
from char_tokenizer import make_tokenizer

from hyperconformer.config import read_config
from hyperconformer.core.text import (
    as_written,
    normalize,
    read_text,
    unwritable,
    write_references,
)
from hyperconformer.corpora import an4, librispeech
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.hub.folder import read_settings
from hyperconformer.training.language_model import read_texts
from hyperconformer.training.phones import read_lexicon
from hyperconformer.transcribe.offline import ASR


@pytest.mark.parametrize(
    "text, form",
    [
        ("GO  ON ", "GO ON"),
        ("CAFE\u0301", "CAF\u00c9"),
        ("a\u0302\u0323", "\u1ead"),  # two accents in another order
        ("GO\u2026", "GO..."),
        ("A \u00bd", "A 1\u20442"),
        ("\ufb01n", "fin"),
        ("\uff27\uff2f", "GO"),  # full width
        ("\ufeffGO\u00a0ON\u200b", "GO ON"),
        ("stra\u00dfe", "stra\u00dfe"),
        ("\u1112\u1161\u11ab", "\ud55c"),
        ("\u2581", ""),
        ("", ""),
    ],
)
def test_the_normal_form_is_what_a_tokenizer_decodes(text, form):
    assert normalize(text) == form == normalize(form)
    if form:
        tokenizer = make_tokenizer(form)
        assert tokenizer.decode(tokenizer.encode(form)) == form


def test_every_composed_letter_has_one_form():
    letters = [chr(c) for c in range(0xC0, 0x2000) if unicodedata.decomposition(chr(c))]
    for letter in letters:
        forms = {
            normalize(f"A{unicodedata.normalize(form, letter)}B")
            for form in ("NFC", "NFD", "NFKC", "NFKD")
        }
        assert len(forms) == 1 or not letter.isalpha(), ascii(letter)


def test_text_is_taken_in_the_case_that_can_be_written():
    capitals, small = make_tokenizer("GO ON \u00c9"), make_tokenizer("go on")
    both = make_tokenizer("GO go")
    assert as_written("Go  on", capitals) == "GO ON"
    assert as_written("Go On", small) == "go on"
    assert as_written("Go", both) == "Go"
    assert as_written("e\u0301", capitals) == "\u00c9"
    # What neither case can write stays, and does not keep the rest from it.
    assert as_written("go 1", capitals) == "GO 1"
    assert unwritable("GO 1 x1", capitals) == ["1", "x", "1"]
    assert unwritable("GO ON", capitals) == []


def test_a_tokenizer_that_folds_case_is_followed():
    folding = make_tokenizer("GO ON", normalization_rule_name="nmt_nfkc_cf")
    assert as_written("Go ON", folding) == "go on"


def test_what_is_changed_or_cannot_be_written_is_logged(caplog):
    tokenizer = make_tokenizer("GO ON")
    with caplog.at_level(logging.WARNING):
        assert write_references(["GO", "G\u004f", ""], tokenizer, "a.csv") == [
            *("GO", "GO", "")
        ]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        written = write_references(["go", "NO 7?", "ON"], tokenizer, "a.csv")
    assert written == ["GO", "NO 7?", "ON"]
    case, letters = caplog.messages
    assert "a.csv: 1 of 3" in case and "letter case" in case and "'go'" in case
    assert "1 of 3 references hold letters" in letters and "'7', '?'" in letters


MARK = "\ufeff"


def write(path, text):
    path.write_text(MARK + text, encoding="utf-8")
    return path


def test_byte_order_marks_are_no_text(tmp_path):
    assert read_text(write(tmp_path / "a.txt", f"GO\n{MARK}ON")) == "GO\nON"
    line = write(tmp_path / "a.transcription", "<s> GO </s> (u1)\n")
    assert an4.read_transcription(line) == ({"u1": "GO"}, [])
    line = write(tmp_path / "a.trans.txt", "1-1-1 GO\n")
    assert librispeech.read_transcripts(line) == {"1-1-1": "GO"}
    lexicon = write(tmp_path / "a.dic", "CAFE\u0301 K AE F EY\n")
    assert read_lexicon(lexicon) == {"CAF\u00c9": ["K", "AE", "F", "EY"]}
    rows = read_manifest(write(tmp_path / "a.csv", "ID,wrd\nu1,GO\n"))
    assert rows == [{"ID": "u1", "wrd": "GO"}]
    tokenizer = make_tokenizer("GO CAF\u00c9")
    text = write(tmp_path / "text.txt", "GO\nCAFE\u0301\n\n")
    assert read_texts([text], tokenizer) == ["GO", "CAF\u00c9"]
    write(tmp_path / "base.yaml", "seed: 1\n")
    settings = write(tmp_path / "a.yaml", "base: base.yaml\nseed: 2\n")
    assert read_config(settings, None, ["seed"]).strip() == "seed: 2"


def test_a_model_folder_may_have_marks(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    write(folder / "config.json", (folder / "config.json").read_text())
    assert list(read_settings(folder)) == list(read_settings(tiny_model))
    assert ASR.from_hparams(folder).sample_rate_hz == 16000


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("ID,wrd\n", encoding="utf-16")
    with pytest.raises(ValueError, match="a.csv is not UTF-8.*save it as UTF-8"):
        read_manifest(path)
