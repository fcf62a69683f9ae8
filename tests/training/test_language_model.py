"""train.py with a language model's YAML, on a handful of synthesised sentences."""

import math
import pathlib

import pytest
import torch
from ruamel.yaml import YAML
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import load_data_csv

from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.hub.folder import load_model
from hyperconformer.training.data import load_tokenizer, train_tokenizer
from hyperconformer.training.language_model import (
    make_text_dataset,
    perplexity,
    read_texts,
    train,
)

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = ROOT / "hparams/lm.yaml"


def language_model_of(source):
    """The language model and the tokenizer of a model folder."""
    config, tokenizer = load_model(source, ["language_model"])
    return config["language_model"], tokenizer


def settings(folder, **changes):
    """A tiny model on a tiny corpus."""
    return {
        "output_folder": str(folder / "lm"),
        "data_folder": str(folder / "spoken"),
        "corpus_options": {
            "train_utterances": 12,
            "valid_utterances": 4,
            "test_utterances": 4,
        },
        "d_model": 16,
        "depth": 2,
        "heads": 2,
        "n_local_attn_heads": 1,
        "dropout": 0.0,
        "max_batch_sentences": 4,
        "lr": 0.01,
        **changes,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two epochs, then the same again for three more."""
    folder = tmp_path_factory.mktemp("run")
    train(CONFIG, {}, settings(folder, number_of_epochs=2))
    results = train(CONFIG, {}, settings(folder, number_of_epochs=5))
    return folder, results


def test_the_loss_falls_and_a_stopped_run_continues(trained):
    folder, _ = trained
    log = read_train_log(folder / "lm/train_log.txt")
    assert log["epoch"] == [1, 2, 3, 4, 5]
    assert log["updates"] == [n * log["updates"][0] for n in log["epoch"]]
    for name in ("train loss", "valid loss", "valid token perplexity"):
        assert log[name] == sorted(log[name], reverse=True), name
    assert log["train loss"][-1] < 0.9 * log["train loss"][0]
    assert (folder / "lm/curve.png").stat().st_size > 0


def likelihood(model, tokenizer, sentences):
    """Nats, tokens and words, one sentence after the other, without padding."""
    nats, tokens, words = 0.0, 0, 0
    for sentence in sentences:
        ids = [tokenizer.bos_id(), *tokenizer.encode(sentence), tokenizer.eos_id()]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        nats -= log_probs[range(len(ids) - 1), ids[1:]].sum().item()
        tokens += len(ids) - 1
        words += len(sentence.split()) + 1
    return nats, tokens, words


def sentences_of(folder, split):
    manifest = next(folder.glob(f"lm/manifests/*{split}*.csv"))
    return [row["wrd"] for row in load_data_csv(str(manifest)).values()]


def test_perplexities_are_those_of_the_exported_model(trained):
    folder, results = trained
    model, tokenizer = language_model_of(folder / "lm")
    for split, part in (("valid", "dev"), ("test", "test")):
        sentences = sentences_of(folder, part)
        nats, tokens, words = likelihood(model, tokenizer, sentences)
        got = results[split]
        assert math.isclose(got["loss"], nats / tokens, rel_tol=1e-4)
        expected = perplexity(nats, tokens)
        assert math.isclose(got["token perplexity"], expected, rel_tol=1e-4)
        assert got["token perplexity"] < tokenizer.vocab_size()
        expected = perplexity(nats, words)
        assert math.isclose(got["word perplexity"], expected, rel_tol=1e-3)


def test_a_uniform_model_is_as_perplexed_as_there_are_tokens(trained):
    model, tokenizer = language_model_of(trained[0] / "lm")
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.zero_()
    nats, tokens, _ = likelihood(model, tokenizer, ["TURN ON", "STOP"])
    assert math.isclose(perplexity(nats, tokens), tokenizer.vocab_size(), rel_tol=1e-5)


def test_the_model_is_the_best_checkpoint(trained):
    folder, results = trained
    log = read_train_log(folder / "lm/train_log.txt")
    best = min(log["valid loss"])
    assert math.isclose(results["valid"]["loss"], best, abs_tol=0.006)  # it is rounded
    losses = {}
    for meta in (folder / "lm/checkpoints").glob("*/CKPT.yaml"):
        losses[YAML().load(meta.read_text())["loss"]] = meta.parent
    state = torch.load(losses[min(losses)] / "language_model.ckpt", weights_only=True)
    model, tokenizer = language_model_of(folder / "lm/model")
    assert state.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    # It needs nothing beside its folder, not even the run's settings.
    assert tokenizer.vocab_size() == model.out.out_features
    assert "!ref" not in (folder / "lm/model/hyperparams.yaml").read_text()


def test_only_evaluates_without_training(trained):
    folder, results = trained
    again = train(CONFIG, {"test_only": True}, settings(folder, number_of_epochs=9))
    assert again == results
    assert len(read_train_log(folder / "lm/train_log.txt")["epoch"]) == 5


def test_the_tokenizer_is_that_of_a_recogniser(trained, tmp_path):
    folder, _ = trained
    manifest = next(folder.glob("lm/manifests/*train*.csv"))
    theirs = load_tokenizer(train_tokenizer(manifest, tmp_path, "char", 1000))
    own = language_model_of(folder / "lm")[1]
    for token in range(theirs.vocab_size()):
        assert own.id_to_piece(token) == theirs.id_to_piece(token)
    assert own.vocab_size() == theirs.vocab_size()


def test_train_py_finds_the_task_and_more_text_and_tokens(runner, trained):
    folder, _ = trained
    text = folder / "more.txt"
    text.write_text("TURN  ON THE LIGHT\n\nturn it off\nSTOP AFTER TEN HOURS\n")
    arguments = [CONFIG, "--reversible=True"]
    tokenizer_file = next((folder / "lm/tokenizer").glob("*.model"))
    changes = {"output_folder": folder / "more", "number_of_epochs": 1}
    changes.update(tokenizer_file=tokenizer_file, train_texts=f"[{text}]")
    for key, value in settings(folder, **changes).items():
        arguments.append(f"--{key}={value}")
    status = runner.run(arguments, folder / "more.log")
    printed = (folder / "more.log").read_text()
    assert status == 0, printed
    assert "word perplexity" in printed
    assert "2 sentences; 1 left out" in printed
    copied = folder / "more/model/tokenizer.model"
    assert copied.read_bytes() == tokenizer_file.read_bytes()


def test_text_is_read_line_by_line(trained, tmp_path):
    tokenizer = language_model_of(trained[0] / "lm")[1]
    file = tmp_path / "text"
    file.write_text(" STOP   IT \n\n stop\nTURN ON")
    assert read_texts([file], tokenizer) == ["STOP IT", "TURN ON"]
    assert read_texts([], tokenizer) == []
    with pytest.raises(FileNotFoundError, match="train_texts: none.txt"):
        read_texts(["none.txt"], tokenizer)
    with pytest.raises(ValueError, match="no line.*upper case"):
        read_texts([__file__], tokenizer)


def test_sentences_begin_and_end(trained):
    tokenizer = language_model_of(trained[0] / "lm")[1]
    dataset = make_text_dataset(["STOP IT", "STOP"], tokenizer)
    batch = PaddedBatch([dataset[0], dataset[1]])
    ids = tokenizer.encode("STOP")
    assert batch.words == ["STOP IT", "STOP"]
    assert batch.tokens_bos.data[1, : len(ids) + 1].tolist() == [1, *ids]
    assert batch.tokens_eos.data[1, : len(ids) + 1].tolist() == [*ids, 2]
    assert dataset.data["1"]["num_tokens"] == len(ids) + 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'"),
        ({"corpus": "spokn"}, "'spokn'.*spoken"),
        ({"train_split": "training"}, "no split 'training'; it has: test, train"),
        ({"tokenizer_file": "none.model"}, "no such tokenizer_file: none.model"),
        ({"heads": 3}, "num_heads must divide d_model"),
    ],
)
def test_mistakes_are_named(trained, changes, message):
    folder = trained[0]
    changes = {"output_folder": str(folder / "mistake"), **changes}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(CONFIG, {}, settings(folder, **changes))


def test_evaluating_before_training_is_refused(trained):
    changes = {"output_folder": str(trained[0] / "nothing")}
    with pytest.raises(ValueError, match="no checkpoint.*train first"):
        train(CONFIG, {"test_only": True}, settings(trained[0], **changes))


def test_a_tokenizer_without_begin_and_end_is_refused(tmp_path):
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("TURN ON\nTURN OFF\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "m"),
        vocab_size=9,
        model_type="char",
        bos_id=-1,
        eos_id=-1,
    )
    with pytest.raises(ValueError, match="0, 1 and 2, got 0, -1, -1"):
        load_tokenizer(tmp_path / "m.model")
