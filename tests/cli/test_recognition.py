"""The search that a command's options ask for."""

from types import SimpleNamespace

import pytest

from hyperconformer.cli.recognition import use_search
from hyperconformer.search import ngram

FOLDERS = {"arpa": "folder/lm.bin", "words": "folder/words.txt", "lm_weight": 0.8}


@pytest.fixture
def searched(monkeypatch):
    """What the searches are made with; the model folder has n-grams."""
    calls = []
    monkeypatch.setattr(
        ngram,
        "ngram_search",
        lambda *ngrams, **options: calls.append((*ngrams, options)),
    )
    asr = SimpleNamespace(
        ngram=FOLDERS, recognizer=None, use_search=lambda search: None
    )

    def search(**options):
        given = {"beam": None, "hotwords": None, "lm": None, "lm_weight": None}
        use_search(asr, SimpleNamespace(**{**given, **options}))
        return [(ngrams, options) for ngrams, _, options in calls]

    return search


def test_a_neural_language_model_rescores_what_the_folders_ngrams_find(
    searched, tmp_path
):
    asked = {"lm_folder": str(tmp_path), "rescore_weight": 0.3}
    assert searched(lm=str(tmp_path), lm_weight=0.3) == [(FOLDERS, asked)]


def test_other_ngrams_replace_the_folders(searched):
    expected = {"arpa": "my.arpa", "lm_weight": 0.5}
    assert searched(lm="my.arpa") == [(expected, {})]


def test_no_language_model_leaves_the_ngrams_out(searched):
    assert searched(lm="none") == [({}, {})]


def test_the_folders_search_stays_where_nothing_is_asked(searched):
    assert searched() == []
    assert searched(lm_weight=0.1) == [({**FOLDERS, "lm_weight": 0.1}, {})]
