"""Every LibriSpeech recipe at its true size, for two updates on synthetic voices."""

import csv
import pathlib

import pytest
from forked_runs import Runner
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from hyperconformer.config import read_config
from hyperconformer.corpora import librispeech
from hyperconformer.corpora.synthetic.read_aloud import read_aloud
from hyperconformer.evaluation.plots import read_train_log
from hyperconformer.training.data import train_tokenizer

pytestmark = pytest.mark.slow
HPARAMS = pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/hparams"
SPLITS = [split for split in librispeech.SPLITS if split != "dev-other"]


def settings_of(recipe):
    text = read_config(HPARAMS / f"{recipe}.yaml", {"data_folder": ""})
    return YAML().load(resolve_references(text))


# Those of the seven official splits; the others name their own.
OTHER_SPLITS = {"mini", "small", "small_streaming"}
RECIPES = sorted({file.stem for file in HPARAMS.glob("*.yaml")} - OTHER_SPLITS)
LANGUAGE_MODELS = [name for name in RECIPES if "language_model" in settings_of(name)]
RECOGNISERS = [name for name in RECIPES if name not in LANGUAGE_MODELS]


@pytest.fixture(scope="module")
def corpus(librispeech_texts, tmp_path_factory):
    """Two short sentences of each of two readers a split."""
    folder = tmp_path_factory.mktemp("corpus")
    read_aloud(librispeech_texts, folder, SPLITS, speakers=2, utterances=2, max_words=8)
    return folder


@pytest.fixture(scope="module")
def tokenizer(librispeech_texts, tmp_path_factory):
    """Trains the tokenizer of a recipe, on all transcripts there are."""
    folder = tmp_path_factory.mktemp("tokenizers")
    files = librispeech_texts.glob("*/*/*/*.trans.txt")
    with open(folder / "all.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for transcripts in files:
            for name, text in librispeech.read_transcripts(transcripts).items():
                rows.writerow([name, 1.0, "", "", text])
    return lambda unit, size: train_tokenizer(folder / "all.csv", folder, unit, size)


@pytest.fixture(scope="module")
def runner():
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def train(runner, corpus, tokenizer):
    """Two updates of a recipe; returns the exit status and what was printed."""

    def run(recipe, folder, *more, death=None):
        settings = settings_of(recipe)
        tokens = tokenizer(settings["token_unit"], settings["vocab_size"])
        small = {
            "loader_workers": 0,
            "max_batch_utterances": 2,
            "max_batch_tokens": 50,
            "beam_size": 3,
            "max_updates": 2,
            "ckpt_interval_minutes": 0,
            "test_splits": ["test-clean"],
        }
        arguments = [
            HPARAMS / f"{recipe}.yaml",
            f"--data_folder={corpus}",
            f"--output_folder={folder}",
            f"--tokenizer_file={tokens}",
            "--device=cpu",
            "--noprogressbar",
            "--ckpt_interval_steps=1",
            *(f"--{key}={small[key]}" for key in small if key in settings),
            *more,
        ]
        status = runner.run(arguments, f"{folder}.txt", death=death)
        return status, pathlib.Path(f"{folder}.txt").read_text()

    return run


def train_and_resume(train, recipe, folder):
    """A run that is killed in its second update, and started again."""
    status, printed = train(recipe, folder, death=("update", 2))
    assert status == -9, printed
    status, printed = train(recipe, folder)
    assert status == 0, printed
    assert "Loading a checkpoint" in printed
    assert read_train_log(folder / "train_log.txt")["updates"] == [2.0]


@pytest.mark.parametrize("recipe", RECOGNISERS)
def test_a_recogniser_trains_resumes_and_decodes(train, tmp_path, recipe):
    folder = tmp_path / "run"
    train_and_resume(train, recipe, folder)
    for chunk_ms in settings_of(recipe)["test_chunks_ms"]:
        suffix = "" if chunk_ms is None else f"_{chunk_ms}ms"
        for split in ("dev-clean", "test-clean"):
            assert (folder / f"wer_{split}{suffix}.txt").stat().st_size > 0


@pytest.mark.parametrize("recipe", LANGUAGE_MODELS)
def test_a_language_model_trains_resumes_and_helps_to_decode(train, tmp_path, recipe):
    train_and_resume(train, recipe, tmp_path / "lm")
    fusion = f"--lm_folder={tmp_path / 'lm'}"
    status, printed = train("hyperconformer_8M", tmp_path / "run", fusion)
    assert status == 0, printed
    assert (tmp_path / "run/wer_test-clean.txt").stat().st_size > 0
