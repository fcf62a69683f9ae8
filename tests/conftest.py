"""Fixtures shared by every test."""

import functools
import json
import operator
import os
import pathlib
import signal

import pytest
import torch
from filelock import FileLock
from speechbrain.utils.importutils import LazyModule

DATA = pathlib.Path(__file__).resolve().parent / "data"


# Hypothesis asks every imported module for its file. SpeechBrain's lazy modules answer
# by importing what they stand for, and fail where that is not installed.
LazyModule.__file__ = None


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def interruptible():
    """Lets new processes hear SIGINT, also where this one ignores it, as under nohup.

    A process inherits that a signal is ignored; a handler is not inherited.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def whole_an4():
    """All of AN4; the repository has twenty of its test utterances."""
    if "AN4_FOLDER" not in os.environ:
        pytest.skip("needs AN4's folder in the environment variable AN4_FOLDER")
    return pathlib.Path(os.environ["AN4_FOLDER"])


@pytest.fixture(scope="session")
def goldens_folder():
    """Where the numeric goldens lie."""
    return DATA / "goldens"


@pytest.fixture(scope="session")
def librispeech_texts():
    """LibriSpeech's transcripts of dev-clean, without audio."""
    return DATA / "librispeech_text"


@pytest.fixture(scope="session")
def make_once(tmp_path_factory, worker_id):
    """Makes a file or folder once for all workers of pytest-xdist."""
    place = tmp_path_factory.getbasetemp()
    place = place if worker_id == "master" else place.parent

    def once(name, make):
        path = place / name
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(path)
        return path

    return once


@pytest.fixture(scope="module")
def object_store():
    """An object store that the AWS settings of the environment name."""
    # Imported here: most tests need none of it.
    from object_store import ObjectStore

    with ObjectStore() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="session")
def build_model_folder(tmp_path_factory):
    """Makes model folders of tiny random recognisers that know the letters A to E."""
    # Imported here: most tests need none of it.
    from hyperconformer.hub.config import build as build_modules
    from hyperconformer.hub.folder import save_model
    from hyperconformer.hub.hyperparams import from_hyperpyyaml
    from hyperconformer.training.data import load_tokenizer, train_tokenizer

    def build(decoder_layers=0):
        folder = tmp_path_factory.mktemp("model")
        manifest = folder / "train.csv"
        manifest.write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,CAB DAD BE\n")
        file = train_tokenizer(manifest, folder / "tokenizer", "char", 0)
        text = TINY_MODEL.format(load_tokenizer(file).vocab_size(), decoder_layers)
        torch.manual_seed(1)
        names = ("extractor", "recognizer")
        modules = build_modules(from_hyperpyyaml(text), names, "tiny")
        # Loud enough that different audio gives different text.
        modules["recognizer"].ctc_head.weight.data.mul_(20)
        return save_model(folder / "out" / "model", text, modules, file)

    return build


@pytest.fixture(scope="session")
def change_settings():
    """Changes settings of a model folder: dotted names to values."""

    def change(folder, **settings):
        path = folder / "config.json"
        tree = json.loads(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            *inner, last = name.split(".")
            part = functools.reduce(operator.getitem, inner, tree)
            part[last] = value
        path.write_text(json.dumps(tree), encoding="utf-8")

    return change


@pytest.fixture(scope="session")
def tiny_model(build_model_folder):
    """One such folder; tests copy it before they change it."""
    return build_model_folder()


TINY_MODEL = """
sample_rate: 16000
extractor: !new:hyperconformer.FeatureExtractor
  features: !new:speechbrain.lobes.features.Fbank
    sample_rate: 16000
    n_fft: 400
    n_mels: 16
  num_features: 16
  normalization: utterance
recognizer: !new:hyperconformer.Recognizer
  frontend: !new:hyperconformer.ConvolutionFrontEnd
    input_shape: [8, 10, 16]
    num_blocks: 2
    num_layers_per_block: 1
    out_channels: (4, 4)
    kernel_sizes: (3, 3)
    strides: (2, 2)
    residuals: (False, False)
  transformer: !new:hyperconformer.HyperConformerASR
    input_size: 16
    tgt_vocab: {0}
    d_model: 16
    nhead: 2
    num_encoder_layers: 1
    num_decoder_layers: {1}
    d_ffn: 32
    kernel_size: 7
    activation: !name:torch.nn.GELU
    attention_type: hypermixing
    normalize_before: true
    causal: false
  d_model: 16
  vocab_size: {0}
"""
