"""A published folder has half the size, the same words and the n-grams."""

import importlib.util
import pathlib
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hyperconformer import ASR, GreedySearcher, LexiconSearcher
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.training.phones import PhoneCTC

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes/LibriSpeech/publish.py"
RUN = ROOT / "pretrained/hyperconformer-an4"
PUBLISHED = ROOT / "pretrained/hyperconformer-librispeech"
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"


@pytest.mark.integration
def test_half_precision_and_ngrams(tmp_path):
    ngram, model = tmp_path / "ngram", tmp_path / "model"
    ngram.mkdir()
    # KenLM knows its forms by their content.
    (ngram / "lm.bin").write_bytes((RUN / "lm.arpa").read_bytes())
    (ngram / "words.txt").write_text("FIVE\nONE\nSEVEN\nTWO\n")
    weights = ["--lm-weight", "0.4", "--word-bonus", "0.5"]
    command = [sys.executable, SCRIPT, RUN, ngram, model, *weights]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with safe_open(model / "model.safetensors", framework="pt") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert kinds["extractor.mean"] == "F32"
    assert kinds["recognizer.ctc_head.weight"] == "F16"
    asr = ASR.from_hparams(source=model, trusted=True)
    assert isinstance(asr.search, LexiconSearcher) and asr.search.lm_weight == 0.4
    assert asr.transcribe_file(SPEECH).text == "ONE FIVE TWO TWO SEVEN"


@pytest.fixture
def publish():
    spec = importlib.util.spec_from_file_location("publish", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    """A recogniser and the phone head that was trained with it, and their files."""
    torch.manual_seed(0)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("A  AH\nBE  B IY\n")
    folder = tmp_path / "run/checkpoints/CKPT+1"
    folder.mkdir(parents=True)
    (folder / "CKPT.yaml").write_text("unixtime: 1\n")
    (folder / "phones.ckpt").write_text("AH\nB\nIY")
    (tmp_path / "run/hyperparams.yaml").write_text("phone_ctc:\n  layer: 2\n")
    recognizer = ASR.from_hparams(source=RUN).recognizer
    width = recognizer.ctc_head.in_features
    phones = PhoneCTC(lexicon, width, layer=2, weight=0.3)
    for module in (recognizer.transformer.encoder.norm.norm, phones.norm):
        torch.nn.init.normal_(module.weight, 1.0, 0.2)
        torch.nn.init.normal_(module.bias)
    torch.save(recognizer.state_dict(), folder / "recognizer.ckpt")
    torch.save(phones.state_dict(), folder / "phone_ctc.ckpt")
    return folder, recognizer, phones


def test_the_phone_head_becomes_one_matrix(publish, checkpoint):
    folder, recognizer, phones = checkpoint
    weights = {}
    assert publish.take_checkpoint(folder, weights) == phones.phones
    width = recognizer.ctc_head.in_features
    vocabulary = recognizer.ctc_head.out_features
    published = Recognizer(
        recognizer.frontend,
        recognizer.transformer,
        width,
        vocabulary,
        phones=phones.phones,
    )
    named = {name.removeprefix("recognizer."): x for name, x in weights.items()}
    published.load_state_dict(named)
    last = torch.randn(2, 30, width)  # the output of the last layer
    encoded = recognizer.transformer.encoder.norm(last)
    expected = phones.head(phones.norm(last)).log_softmax(-1)
    # The two norms add epsilons of 1e-6 and 1e-5 to variances near 1.
    assert (published.phone_log_probs(encoded) - expected).abs().max() < 1e-4


def test_a_phone_head_of_another_layer_is_refused(publish, checkpoint):
    folder, *_ = checkpoint
    publish.require_phones_at(2, folder)
    with pytest.raises(ValueError, match="must be the last layer, 4, got 2"):
        publish.require_phones_at(4, folder)


@pytest.mark.integration
def test_the_mean_with_another_model(publish, tmp_path):
    ours = {"extractor.x": torch.ones(2), "w": torch.tensor([1.0, 3.0])}
    theirs = {"extractor.x": torch.zeros(2), "w": torch.tensor([2.0, -1.0]).half()}
    folder = tmp_path / "other"
    shutil.copytree(ROOT / "pretrained/hyperconformer-an4", folder)
    save_file(theirs, folder / "model.safetensors")
    mean = publish.mean_of(ours, folder)
    assert mean["w"].tolist() == [1.5, 1.0] and mean["w"].dtype == torch.float32
    assert mean["extractor.x"].tolist() == [1.0, 1.0]  # statistics, not weights
    others = {"extractor.x": torch.ones(2), "y": torch.ones(2)}
    save_file(others, folder / "model.safetensors")
    with pytest.raises(ValueError, match="3 weights of the two models.*: v, w, y"):
        publish.mean_of({**ours, "v": torch.ones(2)}, folder)


def test_phones_are_divided_by_their_priors(tmp_path, publish):
    pytest.importorskip("flashlight.lib.text.decoder")
    split, source = ROOT / "tests/data/librispeech_dev19", PUBLISHED
    model = tmp_path / "model"
    weights = ["--lm-weight", "0.85", "--word-bonus", "0"]
    priors = ["--prior-weight", "0.5", "--prior-split", split]
    command = [sys.executable, SCRIPT, source, source, model, *weights, *priors]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before = ASR.from_hparams(source=source, search=GreedySearcher())
    after = ASR.from_hparams(source=model, search=GreedySearcher())
    mean = publish.mean_phone_probabilities(before, split)
    assert mean.sum() == pytest.approx(1.0, abs=1e-5) and mean[0] > 0.3
    change = after.recognizer.phone_head.bias - before.recognizer.phone_head.bias
    # The bias is stored in half precision, whose step is 2^-7 between 8 and 16.
    assert (change + 0.5 * mean.log()).abs().max() < 2**-7


def test_priors_need_a_phone_head_and_a_split(publish):
    asr = ASR.from_hparams(source=RUN)
    with pytest.raises(ValueError, match="needs a model with a phone head"):
        publish.mean_phone_probabilities(asr, ROOT / "tests/data/librispeech_dev19")
    command = [SCRIPT, RUN, RUN, "x", "--lm-weight", "1", "--word-bonus", "0"]
    command = [sys.executable, *command, "--prior-weight", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "need each other" in done.stderr
