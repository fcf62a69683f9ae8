"""Runs of train.py in processes of their own, on a few synthesised utterances."""

import pathlib

import pytest
from forked_runs import Runner

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = [
    ROOT / "hparams/hyperconformer.yaml",
    "--device=cpu",
    "--corpus_options={train_utterances: 14, valid_utterances: 3, test_utterances: 2}",
    "--d_model=16",
    "--nhead=2",
    "--d_ffn=32",
    "--num_encoder_layers=1",
    "--kernel_size=7",
    "--max_batch_utterances=3",
    "--number_of_epochs=2",
    "--avg_checkpoints=1",
    "--noprogressbar",
]


@pytest.fixture(scope="session")
def runner():
    """What starts train.py without a wait."""
    with Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def tiny_arguments(tmp_path_factory):
    """The arguments of train.py that train a tiny model into a folder."""
    corpus = tmp_path_factory.mktemp("corpus")

    def arguments(folder, *more):
        yaml, *settings = TINY
        settings += [f"--data_folder={corpus}", f"--output_folder={folder}", *more]
        # Of a setting that is given twice, the last counts.
        settings = {setting.split("=")[0]: setting for setting in settings}
        return [yaml, *settings.values()]

    return arguments


@pytest.fixture(scope="session")
def train_tiny(runner, tiny_arguments):
    """Trains a tiny model into a folder, without a curve; returns the exit status."""

    def run(folder, *more, **options):
        log = f"{folder}.txt"
        return runner.run(tiny_arguments(folder, *more), log, draws=False, **options)

    return run


@pytest.fixture(scope="session")
def printed():
    """What the runs into a folder have printed."""
    return lambda folder: pathlib.Path(f"{folder}.txt").read_text()
