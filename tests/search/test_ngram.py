"""Which search the n-grams of a model folder get."""

import logging
import pathlib
import shutil

import pytest
import soundfile

from hyperconformer import (
    ASR,
    CTCSearcher,
    GreedySearcher,
    LexiconSearcher,
    LinearAttentionTransformerLM,
    StreamingASR,
)
from hyperconformer.core import extras
from hyperconformer.hub.folder import load_model, save_model
from hyperconformer.search.ngram import ngram_search

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "pretrained/hyperconformer-an4"
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"
PARTS = ["extractor", "recognizer"]
WORDS = ["FIVE", "ONE", "SEVEN", "TWO"]


@pytest.fixture
def folder(tmp_path):
    """A model whose n-grams are for KenLM, which knows its forms by their content."""
    model = tmp_path / "model"
    shutil.copytree(SHIPPED, model)
    (model / "lm.arpa").rename(model / "lm.bin")
    (model / "words.txt").write_text("\n".join([*WORDS, ""]))
    return model


def test_kenlms_form_is_used_for_trusted_folders_only(folder, caplog):
    asr = ASR.from_hparams(source=folder)
    assert isinstance(asr.search, GreedySearcher) and not asr.ngram
    assert "lm.bin is not used" in caplog.text and "--trusted" in caplog.text
    asr = ASR.from_hparams(source=folder, trusted=True)
    assert isinstance(asr.search, LexiconSearcher)
    assert asr.transcribe_file(SPEECH).text == "ONE FIVE TWO TWO SEVEN"


def test_a_lexicon_search_takes_hot_words_and_streams(folder):
    config = load_model(folder, PARTS, trusted=True)[0]
    search = ngram_search(
        config["ngram"], config["recognizer"], nbest=3, hotwords=["NINE"]
    )
    assert isinstance(search, LexiconSearcher) and search.hotwords == ("NINE",)
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    stream = StreamingASR.from_hparams(
        "hyperconformer-an4-streaming", search=search
    ).open()
    *_, last = [*stream.feed(samples, rate), *stream.close()]
    assert last.text == "ONE FIVE TWO TWO SEVEN"


def test_without_the_extra_a_warning_says_so(folder, monkeypatch, caplog):
    def missing(module, extra, purpose):
        raise extras.MissingExtraError(
            f'{purpose} need {module}: pip install "{extra}"'
        )

    monkeypatch.setattr("hyperconformer.search.ngram.import_extra", missing)
    with caplog.at_level(logging.WARNING):
        asr = ASR.from_hparams(source=folder, trusted=True)
    assert isinstance(asr.search, GreedySearcher)
    assert "pip install" in caplog.text and "more errors" in caplog.text
    assert isinstance(ngram_search(asr.ngram, asr.recognizer, nbest=2), CTCSearcher)


def test_no_ngrams_and_no_options_are_no_search():
    recognizer = ASR.from_hparams(source=SHIPPED).recognizer
    assert ngram_search({}, recognizer) is None
    assert ngram_search({}, recognizer, nbest=2).nbest == 2


def test_a_saved_folder_holds_one_form(folder, tmp_path):
    # A language model's folder is the smallest one.
    text = "language_model: !new:hyperconformer.LinearAttentionTransformerLM\n"
    options = {"num_tokens": 5, "dim": 8, "depth": 1, "max_seq_len": 8, "heads": 2}
    text += "".join(f"    {key}: {value}\n" for key, value in options.items())
    modules = {"language_model": LinearAttentionTransformerLM(**options)}
    target, tokenizer = tmp_path / "saved", folder / "tokenizer.model"
    search = LexiconSearcher(folder / "lm.bin", folder / "words.txt", 0.7, 0.2)
    save_model(target, text, modules, tokenizer, search.ngram)
    kept = load_model(target, ["language_model"], trusted=True)[0]["ngram"]
    assert kept == {
        "arpa": target / "lm.bin",
        "words": target / "words.txt",
        "lm_weight": 0.7,
        "word_bonus": 0.2,
    }
    ngram = {"arpa": SHIPPED / "lm.arpa", "lm_weight": 0.4, "word_bonus": 0.5}
    save_model(target, text, modules, tokenizer, ngram)
    assert not (target / "lm.bin").exists() and not (target / "words.txt").exists()


def test_half_of_the_form_is_named(folder):
    (folder / "words.txt").unlink()
    with pytest.raises(ValueError, match="holds lm.bin: word n-grams are either"):
        load_model(folder, PARTS, trusted=True)
