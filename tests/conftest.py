"""Fixtures shared by every test."""

import pathlib
import sys

import pytest
import torch

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def pytest_runtest_setup():
    """Lets hypothesis look at SpeechBrain's lazy modules without importing them.

    It asks every module for its file, and a lazy one of an integration that is not
    installed answers with an ImportError.
    """
    importutils = sys.modules.get("speechbrain.utils.importutils")
    if importutils is not None:
        importutils.LazyModule.__file__ = None


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
