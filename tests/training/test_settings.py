"""The keys of a training run: types, defaults, and who reads them."""

import dataclasses
import pathlib
import re

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from speechbrain.core import RunOptions

from hyperconformer.config import read_config
from hyperconformer.training.experiment import open_experiment
from hyperconformer.training.settings import ASRSettings, LanguageModelSettings

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINING = ROOT / "hyperconformer/training"
ASR_YAML = ROOT / "hparams/fragments/asr.yaml"
FILES = {ASRSettings: ASR_YAML, LanguageModelSettings: ROOT / "hparams/lm.yaml"}


def tree(path=ASR_YAML, overrides=None):
    return YAML().load(resolve_references(read_config(path, overrides)))


@pytest.mark.parametrize("kind", FILES)
def test_defaults_are_those_of_the_shipped_files(kind):
    shipped = kind.read(tree(FILES[kind]))
    bare = kind(output_folder="", corpus="", data_folder="", number_of_epochs=1)
    given = {"output_folder", "corpus", "data_folder", "number_of_epochs"}
    for field in dataclasses.fields(kind):
        if field.init and field.name not in given:
            assert getattr(shipped, field.name) == getattr(bare, field.name), field.name


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_read_and_what_is_read_is_a_key(kind):
    """The Brain's namespace is open: a misspelt name fails in the middle of a run."""
    text = "".join(path.read_text("utf-8") for path in TRAINING.glob("*.py"))
    read = set(re.findall(r"(?:settings|hparams)\.(\w+)", text))
    run_options = {field.name for field in dataclasses.fields(RunOptions)}
    # train.py chooses by the task.
    assert not kind.keys() - read - run_options - {"task"}
    both = ASRSettings.keys() | LanguageModelSettings.keys()
    in_brain = re.findall(r"hparams\.(\w+)", text)
    assert in_brain and not set(in_brain) - both - {"sorting"}


@pytest.mark.parametrize(
    "overrides, message",
    [
        ("max_updates: many", "max_updates must be int or None, got 'many' (str)"),
        ("number_of_epochs: 2.5", "number_of_epochs must be int, got 2.5 (float)"),
        ("seed: null", "seed must be int, got None (NoneType)"),
        ("test_splits: []", "test_splits must name a split, got []"),
        ("test_splits: test", "test_splits must be list[str], got 'test'"),
        ("test_chunks_ms: 640", "test_chunks_ms must be list[float | None], got 640"),
        ("new_head: 1", "new_head must be bool, got 1 (int)"),
        ("precision: fp8", "precision must be Literal['fp32', 'bf16', 'fp16'], got"),
        ("max_batch_s: .inf", "max_batch_s must be a finite number, got inf"),
        ("output_folder: null", "output_folder must name a folder, got null"),
        ("new_head: true", "new_head goes with init_from, which is null"),
    ],
)
def test_a_wrong_value_is_named_before_anything_is_written(
    tmp_path, monkeypatch, overrides, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"asr.yaml: {message}")):
        open_experiment(ASRSettings, ASR_YAML, overrides)
    assert not list(tmp_path.iterdir())


def test_a_part_of_another_type_is_named():
    text = read_config(ASR_YAML, "optimizer: adam")
    settings = ASRSettings.read(tree())
    with pytest.raises(ValueError, match="optimizer must be a class or function, got"):
        settings.build(text, vocab_size=5)


def test_parts_are_absent_until_they_are_built():
    settings = ASRSettings.read(tree())
    with pytest.raises(AttributeError, match="recognizer"):
        settings.recognizer  # noqa: B018
    settings.build(read_config(ASR_YAML, "max_batch_s: !ref <vocab_size> * 2"), 5)
    assert settings.recognizer.ctc_head.weight.shape[0] == settings.vocab_size == 5
    assert settings.max_batch_s == 10  # it refers to the number of tokens


def test_a_key_with_a_default_may_be_left_out():
    left_out = tree()
    for key in ("corpus_options", "cost_lengths_s", "phone_ctc", "init_from"):
        del left_out[key]
    settings = ASRSettings.read(left_out)
    assert settings.corpus_options == {} and settings.phone_ctc is None
    for key in ("corpus", "recognizer"):
        without = tree()
        del without[key]
        with pytest.raises(ValueError, match=f"the key {key} is missing"):
            ASRSettings.read(without)


def test_a_split_is_evaluated_once():
    bare = ASRSettings(output_folder="", corpus="", data_folder="", number_of_epochs=1)
    splits = dataclasses.replace(bare, valid_split="dev", test_splits=["dev", "test"])
    assert splits.evaluated_splits == ["dev", "test"]
