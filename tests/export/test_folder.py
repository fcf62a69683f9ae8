"""A folder of graphs, whole or not there."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.export import check, folder
from hyperconformer.export.check import Report, Row
from hyperconformer.export.folder import export_model
from hyperconformer.export.runtime import OnnxModel

pytestmark = pytest.mark.integration

pytest.importorskip("onnxruntime")


def test_a_folder_holds_graphs_tokens_contract_and_report(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {
        *("model.onnx", "model.int8.onnx", "tokens.txt", "export.json", "README.md")
    }
    contract = json.loads((exported / "export.json").read_text())
    assert contract["kind"] == "offline" and contract["sample_rate"] == 16000
    text = (exported / "README.md").read_text()
    assert "from_omnilingual_asr_ctc" in text and "2 of 2" in text
    tokens = (exported / "tokens.txt").read_text().splitlines()
    assert tokens[0] == "<blk> 0" and len(tokens) == contract["vocab_size"]
    assert [path.name for path in exported.parent.iterdir()] == ["tiny"]


def test_the_report_is_what_a_client_finds(exported, tiny_model, manifest):
    from hyperconformer.transcribe.offline import ASR

    asr, model = ASR.from_hparams(tiny_model), OnnxModel(exported)
    for name in ("a", "b"):
        samples, _ = soundfile.read(manifest.parent / f"{name}.wav", dtype="float32")
        features, lengths = asr.extractor(torch.from_numpy(samples)[None])
        expected = asr.recognizer(features, lengths).ctc[0].detach().numpy()
        # The tiny model's head is twenty times as loud as a trained one.
        assert np.abs(model.log_probs(samples) - expected).max() < 2e-3


def test_a_phone_head_leaves_with_its_phones(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(folder, "_write_graphs", lambda *given: written.append(given))
    place = export_model("hyperconformer-librispeech", tmp_path / "out")
    ((_, graph, contract, *_),) = written
    assert graph.outputs == contract["outputs"]
    assert contract["outputs"] == ("log_probs", "frames", "phone_log_probs")
    phones = (place / "phones.txt").read_text().splitlines()
    assert phones[:2] == ["<blk> 0", "AA 1"]
    assert len(phones) == graph.recognizer.phone_head.out_features
    assert "makes more errors" in (place / "README.md").read_text().replace("\n", " ")


def test_not_a_number_is_a_difference(tmp_path):
    class Model:
        def __init__(self, value):
            self.value = value

        def heads(self, samples):
            return [np.full((2, 3), self.value, "f4")]

    class Tokenizer:
        decode_ids = str

    models = {"PyTorch": Model(0.0), "model.onnx": Model(np.nan)}
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16000)
    every = check._All(models, models["PyTorch"], Tokenizer, 16000)
    every.transcribe_file(tmp_path / "a.wav")
    # Python's numbers, which JSON can hold.
    assert json.dumps(every.differences) == '{"PyTorch": 0.0, "model.onnx": NaN}'


def test_a_graph_that_differs_is_refused(monkeypatch, tiny_model, manifest, tmp_path):
    monkeypatch.setattr(folder, "_write_graphs", lambda *_: None)
    report = Report([], 1, ["model.onnx has 9 % WER, PyTorch 1 %"])
    monkeypatch.setattr(check, "compare", lambda *_: report)
    with pytest.raises(ValueError, match="9 % WER.* --force writes it"):
        export_model(tiny_model, tmp_path / "out", manifest=manifest)
    assert not list(tmp_path.iterdir())


def test_what_an_export_may_differ_by():
    pytorch = Row("PyTorch", 0.0, 5.0, 9, 0.1)
    same = Row("model.onnx", 1e-5, 5.05, 9, 0.1)
    assert not list(check._faults(same, pytorch))
    (words,) = check._faults(same._replace(wer=4.8), pytorch)
    assert "4.80 % WER, PyTorch 5.00 %" in words
    (numbers,) = check._faults(same._replace(difference=float("nan")), pytorch)
    assert "at most 1e-04" in numbers
    # PyTorch in float32 differs as much from itself with spectra in float64.
    rounds, worse = same._replace(difference=2e-4), pytorch._replace(difference=3e-4)
    assert list(check._faults(rounds, pytorch))
    assert not list(check._faults(rounds, worse))
    int8 = Row("model.int8.onnx", 0.3, 5.4, 8, 0.1)
    assert not list(check._faults(int8, pytorch))
    assert list(check._faults(int8._replace(wer=5.6), pytorch))


def test_another_folder_is_not_replaced(tiny_model, tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match="is no exported model: name another folder"):
        export_model(tiny_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_manifest_that_cannot_be_read_is_named_first(tiny_model, tmp_path):
    """Before the graphs are made, which takes minutes."""
    bad = tmp_path / "bad.csv"
    bad.write_text("id,wav\n1,a.wav\n")
    for manifest, error in (
        (tmp_path / "no.csv", FileNotFoundError),
        (bad, ValueError),
    ):
        with pytest.raises(error, match=manifest.name):
            export_model("/no/model", tmp_path / "exported", manifest=manifest)


def test_a_failure_leaves_nothing(monkeypatch, tiny_model, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write_graphs", full)
    with pytest.raises(OSError, match="No space left"):
        export_model(tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_clients_refuse_other_folders_and_versions(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks export.json"):
        OnnxModel(tmp_path)
    copy = shutil.copytree(exported, tmp_path / "copy")
    contract = json.loads((copy / "export.json").read_text())
    (copy / "export.json").write_text(json.dumps({**contract, "version": 2}))
    with pytest.raises(ValueError, match="has version 2, expected 1"):
        OnnxModel(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="lacks model.onnx"):
        OnnxModel(copy)
