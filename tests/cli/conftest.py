"""What the tests of several commands need."""

import shutil

import pytest
import soundfile
import torch


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two audio files."""
    folder = tmp_path_factory.mktemp("audio")
    paths = [folder / "one.wav", folder / "two.flac"]
    for path in paths:
        soundfile.write(path, 0.1 * torch.randn(16000).numpy(), 16000)
    return [str(path) for path in paths]


@pytest.fixture
def streaming_model(tiny_model, change_settings, tmp_path):
    """The tiny model, causal, and features that do not wait for the utterance's end."""
    folder = shutil.copytree(tiny_model, tmp_path / "streaming")
    settings = {"extractor.normalization": "global", "extractor.top_db": None}
    change_settings(folder, **settings, **{"recognizer.frontend.causal": True})
    return folder
