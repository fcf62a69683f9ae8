"""Every mixer in the default run's place learns.

The quick form overfits a handful of utterances; ``make test-slow`` runs the default
experiment itself for a few hundred updates.
"""

import pathlib

import pytest

from hyperconformer.plots import read_train_log
from hyperconformer.registry import list_mixers
from hyperconformer.training.run import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"train_utterances": 12, "valid_utterances": 2, "test_utterances": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


def losses(folder, corpus, mixer, **overrides):
    settings = {
        "output_folder": str(folder),
        "data_folder": str(corpus),
        "attention_type": mixer,
        **overrides,
    }
    train(ROOT / "hparams/hyperconformer.yaml", {"noprogressbar": True}, settings)
    return read_train_log(folder / "train_log.txt")["train loss"]


@pytest.mark.parametrize("mixer", list_mixers())
def test_learns(tmp_path, corpus, mixer):
    got = losses(
        tmp_path,
        corpus,
        mixer,
        corpus_options=SIZES,
        d_model=32,
        nhead=4,
        d_ffn=64,
        num_encoder_layers=2,
        kernel_size=7,
        number_of_epochs=8,
        augment_from_epoch=99,
        max_batch_utterances=4,
    )
    assert got[-1] < 0.8 * got[0]


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
def test_learns_in_the_default_run(tmp_path, corpus, mixer):
    """Three hundred updates of the default model on a quarter of its corpus."""
    got = losses(
        tmp_path,
        corpus / "quarter",
        mixer,
        corpus_options={**SIZES, "train_utterances": 400},
        number_of_epochs=3,
        max_batch_utterances=4,
    )
    assert got[-1] < 0.8 * got[0]
