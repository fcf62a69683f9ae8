"""Claims that hold, claims that do not, and claims that cannot be measured."""

import csv
import json
import math
import pathlib
import shutil
import sys

import pytest

from hyperconformer.core.extras import MissingExtraError
from hyperconformer.export.check import MAX_DIFFERENCE, Report, Row
from hyperconformer.hub.folder import find_model, list_shipped_models
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.transcribe.streaming import StreamingASR
from hyperconformer.verification import measure, verify
from hyperconformer.verification.claims import (
    CARD_FILE,
    CLAIMS_FILE,
    hash_files,
    read_card,
    read_claims,
    render,
)
from hyperconformer.verification.measure import Speech, Subject
from hyperconformer.verification.verify import CHECKS, FAIL, NOT_APPLICABLE, PASS

MODEL = "hyperconformer-an4"


@pytest.mark.parametrize("name", list_shipped_models())
def test_card_and_files_of_shipped_models_say_what_is_claimed(name):
    folder = find_model(name)
    claims = read_claims(folder)
    assert claims["files"] == hash_files(folder)
    assert list(claims["results"]) == list(CHECKS)
    assert read_card((folder / CARD_FILE).read_text()) == render(claims, verify.TITLES)


@pytest.mark.integration
@pytest.mark.parametrize("name", list_shipped_models())
def test_what_is_claimed_of_shipped_models_holds(name):
    verdict = verify.verify(name, quick=True)
    assert not verdict.failed, verdict.table()


@pytest.mark.slow
@pytest.mark.parametrize("name", list_shipped_models())
def test_all_that_is_claimed_of_shipped_models_holds(name):
    verdict = verify.verify(name)
    assert not verdict.failed, verdict.table()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two of the twenty utterances."""
    path = tmp_path_factory.mktemp("speech") / "two.csv"
    rows = Speech("an4", path.parent).rows[1:3]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("ID", "wav", "wrd"), *rows])
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, manifest):
    """A model folder with claims, but of graphs and long input."""
    folder = shutil.copytree(find_model(MODEL), tmp_path_factory.mktemp("m") / "model")
    (folder / CARD_FILE).write_text("# My model\n")
    quick = {key: check for key, check in CHECKS.items() if check.quick}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "CHECKS", quick)
        verify.record(folder, manifest)
    return folder


@pytest.fixture
def model(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "model")


def change_claims(folder, change):
    path = folder / CLAIMS_FILE
    claims = json.loads(path.read_text())
    change(claims)
    path.write_text(json.dumps(claims))


def rows_of(folder, manifest):
    verdict = verify.verify(folder, manifest, quick=True)
    return verdict, {row.check: row for row in verdict.rows}


def test_what_was_recorded_holds(model, manifest):
    verdict, rows = rows_of(model, manifest)
    assert not verdict.failed
    assert rows["default search"].verdict == PASS
    assert rows["default search"].found == "0 of 10 words wrong (0.00 %)"
    (streams,) = (row for check, row in rows.items() if check.startswith("streams and"))
    assert streams.verdict == NOT_APPLICABLE
    assert "needs the whole utterance" in streams.reason
    card = (model / CARD_FILE).read_text()
    assert card.startswith("# My model\n") and "| default search | 0 of 10" in card
    assert "| streams" not in card
    assert "Not applicable (normalization: level needs the whole utterance" in card


def test_recording_again_replaces_the_part(model, manifest, monkeypatch):
    card = (model / CARD_FILE).read_text()
    (model / CARD_FILE).write_text(card + "\nThe end.\n")
    monkeypatch.setattr(verify, "CHECKS", {"words": CHECKS["words"]})
    verify.record(model, manifest)
    after = (model / CARD_FILE).read_text()
    assert after.count("## Verified") == 1 and after.endswith("-->\n\nThe end.\n")
    assert "CTC head, greedy" in card and "CTC head, greedy" not in after


def test_another_card_fails(model, manifest):
    card = (model / CARD_FILE).read_text()
    for text, reason in (
        (card.replace("0 of 10 words", "0 of 99 words"), "they differ"),
        ("# My model\n", f"it has no part from {CLAIMS_FILE}"),
    ):
        (model / CARD_FILE).write_text(text)
        verdict, rows = rows_of(model, manifest)
        (row,) = (row for row in verdict.rows if row.verdict == FAIL)
        assert row.check.startswith(f"`{CARD_FILE}`") and row.reason == reason
    (model / CARD_FILE).unlink()
    verdict, rows = rows_of(model, manifest)
    assert not verdict.failed and f"there is no {CARD_FILE}" in verdict.table()


def test_changed_files_fail(model, manifest):
    weights = model / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1  # The sign or the exponent of a weight stays.
    weights.write_bytes(whole)
    (model / "lm.arpa").unlink()
    (model / "words.txt").write_text("CAB\n")
    claims = read_claims(model)
    rows = {
        r.check: r for r in verify._compare_files(claims["files"], hash_files(model))
    }
    assert rows["`model.safetensors`"].reason == "it was changed"
    assert rows["`lm.arpa`"].reason == "it is missing"
    assert rows["`words.txt`"].reason == "it is not claimed"
    assert rows["`tokenizer.model`"].verdict == PASS


def test_a_model_that_does_not_load_fails(model, manifest):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    verdict, rows = rows_of(model, manifest)
    assert rows["`model.safetensors`"].verdict == FAIL
    assert rows["the model loads"].verdict == FAIL
    assert "model.safetensors is damaged" in rows["the model loads"].reason


def test_claims_that_do_not_hold_fail(model, manifest):
    change_claims(model, lambda claims: claims["results"]["words"].update(wrong=2))
    _, rows = rows_of(model, manifest)
    assert rows["default search"].verdict == FAIL
    assert rows["default search"].reason == "they may differ by 1"
    # One word may turn with a processor's rounding.
    change_claims(model, lambda claims: claims["results"]["words"].update(wrong=1))
    assert rows_of(model, manifest)[1]["default search"].verdict == PASS


def test_how_claims_are_judged():
    def judge(claimed, found, same=True):
        return verify._judge("it", claimed, found, same)

    small, large = {"difference": MAX_DIFFERENCE}, {"difference": 1.1 * MAX_DIFFERENCE}
    assert judge(small, small).verdict == PASS
    assert judge({"reason": "no"}, small).verdict == PASS
    for found in (large, {"difference": float("nan")}, {"difference": float("inf")}):
        row = judge(small, found)
        assert row.verdict == FAIL and "at most 1e-04" in row.reason
    assert judge(small, {**large, "allowed": 2e-4}).verdict == PASS
    words = {"wrong": 3, "words": 773}
    assert judge(words, {"wrong": 6, "words": 773}).verdict == PASS
    assert judge(words, {"wrong": 7, "words": 773}).verdict == FAIL
    row = judge(words, {"wrong": 700, "words": 773}, same=False)
    assert row.verdict == NOT_APPLICABLE and row.reason == "claimed of other speech"
    assert judge({"reason": "no"}, words).reason == "nothing is claimed"
    # What the model was said to do, it must do.
    assert judge(words, {"reason": "it cannot"}).verdict == FAIL
    assert judge({"reason": "no"}, {"reason": "it cannot"}).verdict == NOT_APPLICABLE
    row = judge(words, {"missing": "needs onnx"})
    assert row.verdict == NOT_APPLICABLE and row.reason == "needs onnx"


def test_a_model_that_depends_on_its_batch_fails(model, manifest, monkeypatch):
    forward = Recognizer.forward

    for leak, shown in ((math.nan, "nan"), (-0.01, "1.0e-02")):

        def leaky(self, features, lengths, *more, leak=leak, **options):
            found = forward(self, features, lengths, *more, **options)
            return found._replace(ctc=found.ctc + (leak if len(features) > 1 else 0))

        monkeypatch.setattr(Recognizer, "forward", leaky)
        monkeypatch.setattr(verify, "CHECKS", {"batch": CHECKS["batch"]})
        row = verify.verify(model, manifest).rows[-1]
        assert row.verdict == FAIL and row.found == shown
    claims = (model / CLAIMS_FILE).read_bytes()
    with pytest.raises(
        ValueError, match="1.0e-02, at most 1e-04 .* nothing is claimed"
    ):
        verify.record(model, manifest)
    assert (model / CLAIMS_FILE).read_bytes() == claims


def test_graphs_are_compared_once(model, manifest, monkeypatch, tmp_path):
    rows = [
        Row("PyTorch", 3e-4, 10.0, 2, 0.1),
        Row("model.onnx", 2e-5, 10.0, 2, 0.1),
        Row("model.int8.onnx", 0.4, 20.0, 1, 0.1),
    ]
    exports = []
    monkeypatch.setattr(measure, "compare", lambda *_: Report(rows, 2, []))
    monkeypatch.setattr(
        measure, "export_model", lambda *_, **options: exports.append(options)
    )
    subject = Subject(model, Speech(manifest, tmp_path), 640, 0, 60)
    found = subject.graph_difference("model.onnx")
    assert found == {"difference": 2e-5, "allowed": 3e-4}
    assert subject.graph_words("model.int8.onnx") == {"wrong": 2, "words": 10}
    assert [options["chunk_ms"] for options in exports] == [None]
    with pytest.raises(ValueError, match="needs the whole utterance"):
        subject.graph_difference("model.onnx", streaming=True)


def test_a_missing_package_is_no_failure(model, manifest, monkeypatch):
    def missing(module, extra, purpose):
        raise MissingExtraError(f"{purpose} need {module}: [{extra}]")

    monkeypatch.setattr(measure, "import_extra", missing)
    monkeypatch.setattr(verify, "CHECKS", {"onnx": CHECKS["onnx"]})
    verdict = verify.verify(model, manifest)
    assert not verdict.failed
    assert verdict.rows[-1].verdict == NOT_APPLICABLE
    assert "[export]" in verdict.rows[-1].reason
    # But what was not measured is not claimed.
    with pytest.raises(MissingExtraError):
        verify.record(model, manifest)


def test_what_decodes_without_its_ngrams_is_not_measured(
    model, manifest, tmp_path, monkeypatch
):
    subject = Subject(model, Speech(manifest, tmp_path), 640, 0, 60)
    monkeypatch.setitem(subject.asr.ngram, "words", model / "words.txt")
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    with pytest.raises(MissingExtraError, match="flashlight"):
        subject.words()
    # Such a file of a stranger's is left out.
    (model / "lm.arpa").rename(model / "lm.bin")
    (model / "words.txt").write_text("CAB\n")
    subject = Subject(model, Speech(manifest, tmp_path), 640, 0, 60)
    for measured in (subject.words, subject.longest_words):
        with pytest.raises(MissingExtraError, match="need --trusted"):
            measured()


def test_the_longest_input_is_the_speech_again_and_again(model, manifest, tmp_path):
    subject = Subject(model, Speech(manifest, tmp_path), 640, 0, 20)
    found = subject.longest_words()
    assert found["words"] % 10 == 0 and found["words"] >= 20
    assert found["wrong"] <= found["words"] / 10


def test_streams_search_with_the_ngrams_of_the_folder(
    manifest, tmp_path, change_settings, monkeypatch
):
    folder = shutil.copytree(find_model(f"{MODEL}-streaming"), tmp_path / "model")
    shutil.copy(find_model(MODEL) / "lm.arpa", folder)
    change_settings(folder, ngram={"lm_weight": 0.5, "word_bonus": 0.0})
    searches = []

    class Recorded(StreamingASR):
        def use_search(self, search=None):
            searches.append(search)
            super().use_search(search)

    monkeypatch.setattr(measure, "StreamingASR", Recorded)
    found = Subject(folder, Speech(manifest, tmp_path), 640, 0, 60).stream_words()
    assert found["words"] == 10 and found["wrong"] <= 5
    assert isinstance(searches[0], CTCSearcher)


def test_other_speech(model, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such manifest: two.csv"):
        verify.verify(model)  # Claims do not say where it was.
    monkeypatch.setattr(verify, "CHECKS", {"greedy": CHECKS["greedy"]})
    verdict = verify.verify(model, "an4")
    assert not verdict.failed and "claimed of other speech" in verdict.table()
    monkeypatch.setattr(measure, "DATA", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="name a manifest by --speech"):
        verify.verify(model, "an4")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, f"lacks {CLAIMS_FILE}, which `hyperconformer verify --record` writes"),
        ("{", "verify.json is damaged"),
        ("[]", r"has version \[\], expected 2"),
        ('{"version": 7}', "has version 7, expected 2"),
        ('{"version": 2, "files": {}}', "lacks chunk_ms, environment, longest_s"),
        (
            '{"version": 2, "speech": {"name": "an4"}}',
            "results, right_context_ms, sha256, utterances",
        ),
    ],
)
def test_claims_that_cannot_be_read(model, text, message):
    path: pathlib.Path = model / CLAIMS_FILE
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        verify.verify(model)


def test_claims_of_an_older_version_still_name_the_speech(model, manifest, monkeypatch):
    monkeypatch.setattr(verify, "CHECKS", {"greedy": CHECKS["greedy"]})
    path = model / CLAIMS_FILE
    old = {"version": 1, "speech": {"name": str(manifest)}}
    path.write_text(json.dumps(old))
    verify.record(model)
    assert json.loads(path.read_text())["speech"]["utterances"] > 0
    path.write_text('{"version": 1}')
    with pytest.raises(ValueError, match="does not say on what speech: name it"):
        verify.record(model)


def test_speech_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        Speech(tmp_path / "none.csv", tmp_path)
    path = tmp_path / "bad.csv"
    path.write_text("ID,wav,wrd\na,,CAB\n")
    with pytest.raises(ValueError, match="bad.csv: utterance a: audio or text"):
        Speech(path, tmp_path)
