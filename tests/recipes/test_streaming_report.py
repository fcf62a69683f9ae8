"""The table and the picture of latency against word error rate."""

import pathlib
import runpy

import pytest
from streaming_model import STREAMING_YAML, TINY, streaming_config

from hyperconformer.config import read_config, resolve_config
from hyperconformer.hub.folder import save_model
from hyperconformer.training.data import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "pretrained/hyperconformer-an4/tokenizer.model"
LOG = """\
epoch: 1, lr: 1.0e-03, updates: 9 - train loss: 9.0 - valid loss: 7.0, valid WER: 50.0
test set: valid - test loss: 2.5e-01, test WER: 16.20, test CER: 7.22
test set: valid_640ms - test loss: 2.8e-01, test WER: 20.99, test CER: 9.48
test set: test - test loss: 2.1e-01, test WER: 20.00, test CER: 6.51
test set: test_640ms - test loss: 2.9e-01, test WER: 90.00, test CER: 8.27
test set: test_640ms - test loss: 2.9e-01, test WER: 23.00, test CER: 8.27
"""


@pytest.fixture(scope="module")
def report():
    return runpy.run_path(str(ROOT / "recipes/streaming_report.py"))["main"]


def make_run(folder, log=LOG, **changes):
    changes["vocab_size"] = load_tokenizer(TOKENIZER).vocab_size()
    config = streaming_config(**changes)
    text = read_config(STREAMING_YAML, {**TINY, **changes})
    save_model(
        folder / "model",
        resolve_config(text, {}, ["sample_rate", "extractor", "recognizer"]),
        {name: config[name] for name in ("extractor", "recognizer")},
        TOKENIZER,
    )
    (folder / "train_log.txt").write_text(log)
    return str(folder)


def test_latency_is_the_models_and_rates_are_the_logs(report, tmp_path, capsys):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", attention_type=["RoPEMHA", "hypermixing"]),
    ]
    report([*runs, "--picture", str(tmp_path / "latency.png")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 2
    assert lines[3] == (
        "| hypermixing | 640 ms | 642.5 ms | 20.99 % | 23.00 % | 8.27 % | +15% |"
    )
    mixers = "['RoPEMHA', 'hypermixing']"
    assert lines[4].startswith(f"| {mixers} | whole utterance | its length | 16.20 %")
    assert (tmp_path / "latency.png").stat().st_size > 0


def test_a_right_context_adds_to_the_latency(report, tmp_path, capsys):
    log = LOG.replace("_640ms", "_560+80ms")
    report([make_run(tmp_path / "a", log), "--picture", str(tmp_path / "latency.png")])
    assert capsys.readouterr().out.splitlines()[3] == (
        "| hypermixing | 560 + 80 ms | 642.5 ms | 20.99 % | 23.00 % | 8.27 % | +15% |"
    )


def test_what_was_not_decoded_or_cannot_stream_is_named(report, tmp_path):
    half = make_run(tmp_path / "half", LOG.replace("set: valid_640ms", "set: other"))
    with pytest.raises(ValueError, match="no results of .'valid_640ms'"):
        report([half])
    with pytest.raises(ValueError, match="no results of .'test', 'valid'"):
        report([make_run(tmp_path / "none", LOG.splitlines()[0])])
    with pytest.raises(ValueError, match="not causal"):
        report([make_run(tmp_path / "whole", frontend_causal=False)])
