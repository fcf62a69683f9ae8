"""The Python blocks of the documents are tests; each document has its own folder."""

import importlib.util
import os
import pathlib
import shutil
import tempfile

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

# The server needs FastAPI, which its extra installs from Python 3.11 on.
collect_ignore_glob = []
if importlib.util.find_spec("fastapi") is None:
    collect_ignore_glob = ["hyperconformer/serve/*", "*/serve_load.py", "tests/serve/*"]

ROOT = pathlib.Path(__file__).parent
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"
# The models that training would have left there.
MODELS = {
    "hyperconformer": "hyperconformer-an4",
    "hyperconformer_streaming": "hyperconformer-an4-streaming",
}


def set_up(namespace):
    """Makes the working folder that the documents speak of."""
    import soundfile

    folder = pathlib.Path(tempfile.mkdtemp())
    shutil.copy(SPEECH, folder / "speech.wav")
    shutil.copy(ROOT / "pretrained/hyperconformer-an4/lm.arpa", folder)
    for name, shipped in MODELS.items():
        run = folder / "results" / name
        shutil.copytree(ROOT / "pretrained" / shipped, run / "model")
    samples, _ = soundfile.read(SPEECH, dtype="float32")
    starts = range(0, len(samples), 5000)
    namespace["microphone"] = [samples[start : start + 5000] for start in starts]
    namespace["left"] = os.getcwd(), folder
    os.chdir(folder)


def tear_down(namespace):
    """Leaves the folder and removes it."""
    home, folder = namespace["left"]
    os.chdir(home)
    shutil.rmtree(folder)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "CONTRIBUTING.md", "docs/*.md"],
    setup=set_up,
    teardown=tear_down,
).pytest()
