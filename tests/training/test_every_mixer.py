"""Every mixer in the default run's place learns.

The quick form overfits a handful of utterances; ``make test-slow`` runs the default
experiment itself for three hundred updates.
"""

import pathlib

import pytest
import torch
from speechbrain.dataio.dataio import load_data_csv
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.mixers.registry import list_mixers
from hyperconformer.training.asr import train
from hyperconformer.training.data import load_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZES = {"train_utterances": 12, "valid_utterances": 2, "test_utterances": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


def default_run(folder, corpus, mixer, **overrides):
    settings = {
        "output_folder": str(folder),
        "data_folder": str(corpus),
        "attention_type": mixer,
        **overrides,
    }
    train(ROOT / "hparams/hyperconformer.yaml", {"noprogressbar": True}, settings)
    return read_train_log(folder / "train_log.txt")


@pytest.mark.integration
@pytest.mark.parametrize("mixer", list_mixers())
def test_learns(tmp_path, corpus, mixer):
    log = default_run(
        tmp_path,
        corpus,
        mixer,
        corpus_options=SIZES,
        d_model=32,
        nhead=4,
        d_ffn=64,
        num_encoder_layers=1,
        kernel_size=7,
        number_of_epochs=8,
        augment_from_epoch=99,
        max_batch_utterances=4,
    )
    assert log["train loss"][-1] < 0.8 * log["train loss"][0]


def deaf_loss(run):
    """The least CTC loss without listening, on the validation set.

    A model that knows no more than which frame it is in can give each frame a
    distribution of its own and nothing else. Here these are fitted to the very
    utterances that they are measured on: less is not to be had by guessing.
    """
    (tokenizer_file,) = (run / "tokenizer").glob("*.model")
    tokenizer = load_tokenizer(tokenizer_file)
    rows = load_data_csv(str(run / "manifests/dev-spoken.csv")).values()
    tokens = [torch.tensor(tokenizer.encode_as_ids(row["wrd"])) for row in rows]
    # 100 frames a second, halved twice by the front end.
    frames = torch.tensor([int(100 * float(row["duration"])) + 1 for row in rows])
    frames = (frames + 3) // 4
    logits = torch.zeros(frames.max(), tokenizer.vocab_size(), requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        loss = torch.nn.functional.ctc_loss(
            logits.log_softmax(-1).unsqueeze(1).expand(-1, len(tokens), -1),
            pad_sequence(tokens, batch_first=True),
            frames,
            torch.tensor([len(ids) for ids in tokens]),
        )
        loss.backward()
        return loss

    optimizer.step(loss)
    return loss().item()


@pytest.mark.slow
@pytest.mark.parametrize("mixer", list_mixers())
def test_listens_after_three_hundred_updates_of_the_default_run(
    tmp_path, corpus, mixer
):
    """Not only does the loss fall: it falls below what guessing could reach.

    CTC first learns to say nothing, and stays there for a hundred updates or so.
    """
    log = default_run(tmp_path, corpus / "whole", mixer, number_of_epochs=2)
    assert log["updates"][-1] > 300
    assert log["train loss"][1] < log["train loss"][0]
    assert log["valid loss"][1] < deaf_loss(tmp_path)
