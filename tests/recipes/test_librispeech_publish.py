"""A published folder has half the size, the same words and the n-grams."""

import pathlib
import subprocess
import sys

from safetensors import safe_open

from hyperconformer import ASR, LexiconSearcher

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "recipes/LibriSpeech/publish.py"
RUN = ROOT / "pretrained/hyperconformer-an4"
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"


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
