"""Every LibriSpeech recipe at its true size, for a few updates on synthetic voices."""

import csv
import pathlib

import pytest
from forked_runs import Runner

from hyperconformer.corpora import librispeech
from hyperconformer.corpora.read_aloud import read_aloud
from hyperconformer.plots import read_train_log
from hyperconformer.training.data import train_tokenizer

pytestmark = pytest.mark.slow
HPARAMS = pathlib.Path(__file__).resolve().parents[2] / "recipes/LibriSpeech/hparams"
SPLITS = [split for split in librispeech.SPLITS if split != "dev-other"]


@pytest.fixture(scope="module")
def corpus(shared_folder, tmp_path_factory):
    """Six splits of real transcripts, two minutes together."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = shared_folder / "librispeech_text"
    minutes = read_aloud(texts, folder, SPLITS, speakers=2, utterances=2, max_words=20)
    assert minutes > 1
    return folder


@pytest.fixture(scope="module")
def tokenizers(shared_folder, tmp_path_factory):
    """Tokenizers of the recipes' sizes, of all transcripts there are."""
    folder = tmp_path_factory.mktemp("tokenizers")
    files = (shared_folder / "librispeech_text").glob("*/*/*/*.trans.txt")
    with open(folder / "all.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        for transcripts in files:
            for name, text in librispeech.read_transcripts(transcripts).items():
                rows.writerow([name, 1.0, "", "", text])
    return {
        size: train_tokenizer(folder / "all.csv", folder, "unigram", size)
        for size in (500, 5000)
    }


@pytest.fixture(scope="module")
def runner():
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def train(runner, corpus, tokenizers):
    def run(recipe, folder, size, *more):
        arguments = [
            HPARAMS / f"{recipe}.yaml",
            f"--data_folder={corpus}",
            f"--output_folder={folder}",
            f"--tokenizer_file={tokenizers[size]}",
            "--device=cpu",
            "--loader_workers=0",
            "--noprogressbar",
            *more,
        ]
        log = f"{folder}.txt"
        assert runner.run(arguments, log) == 0, pathlib.Path(log).read_text()

    return run


@pytest.mark.parametrize(
    "recipe,size,more",
    [
        ("hyperconformer_8M", 5000, ["--beam_size=3"]),
        ("hyperconformer_22M", 5000, ["--beam_size=3"]),
        ("conformer_baseline", 5000, ["--beam_size=3"]),
        ("hyperconformer_100h", 500, ["--beam_size=3"]),
        ("ctc_only", 500, []),
    ],
)
def test_a_recogniser_trains_resumes_and_decodes(train, tmp_path, recipe, size, more):
    folder = tmp_path / "run"
    small = ["--max_batch_s=20", "--avg_checkpoints=2", *more]
    train(recipe, folder, size, *small, "--optimizer_step_limit=2")
    train(recipe, folder, size, *small, "--optimizer_step_limit=4")
    log = read_train_log(folder / "train_log.txt")
    assert log["epoch"] == [1.0, 2.0] and log["updates"] == [2.0, 4.0]
    for split in ("dev-clean", "test-clean", "test-other"):
        assert (folder / f"wer_{split}.txt").stat().st_size > 0
    train(recipe, folder, size, *small, "--test_only")
    assert read_train_log(folder / "train_log.txt") == log


@pytest.mark.parametrize("recipe", ["lm_linear", "lm_transformer"])
def test_a_language_model_trains_and_helps_to_decode(train, tmp_path, recipe):
    small = ["--max_batch_tokens=100", "--optimizer_step_limit=2"]
    train(recipe, tmp_path / "lm", 5000, *small)
    small = ["--max_batch_s=20", "--optimizer_step_limit=1", "--beam_size=3"]
    fusion = [*small, f"--lm_folder={tmp_path / 'lm'}"]
    train("hyperconformer_8M", tmp_path / "run", 5000, *fusion)
    assert (tmp_path / "run/wer_test-clean.txt").stat().st_size > 0
