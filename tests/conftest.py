"""Fixtures shared by every test."""

import pathlib

import pytest
import torch
from speechbrain.utils.importutils import LazyModule

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# Hypothesis asks every imported module for its file. SpeechBrain's lazy modules answer
# by importing what they stand for, and fail where that is not installed.
LazyModule.__file__ = None


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder():
    """The development material beside the repository; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder `shared` beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def goldens_folder(shared_folder):
    """Where the numeric goldens lie."""
    return shared_folder / "goldens"
