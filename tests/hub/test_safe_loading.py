"""Model folders from strangers: none runs code, hangs or fills the memory."""

import json
import math
import os
import pathlib
import pickle
import shutil
import signal
import struct
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from hyperconformer.config import read_config, resolve_config
from hyperconformer.hub.config import MODULES, build, parse_config
from hyperconformer.hub.folder import find_model, load_model, read_settings
from hyperconformer.hub.hyperparams import from_hyperpyyaml
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.training.experiment import prepare_tokenizer
from hyperconformer.transcribe.offline import ASR

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A folder that takes longer than this counts as hanging.
LIMIT_S = 30


class StillLoadingError(BaseException):
    """Not an Exception: what is loading must not take it for an error of a file."""


@pytest.fixture(autouse=True)
def _no_hanging():
    def stop(*_):
        raise StillLoadingError(f"after {LIMIT_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    yield
    signal.alarm(0)


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A good model folder of this test's own."""
    return pathlib.Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_the_untouched_folder_loads(folder):
    assert ASR.from_hparams(folder).sample_rate_hz == 16000


# A place in config.json, what is put there, and what is said of it. MARK is a file that
# appears if something is carried out.
ACTIVATION = "recognizer.transformer.activation"
OPTIONS = "recognizer.transformer.mixer_options"
MARK = "executed"
TOUCH = {"args": ["touch", MARK], "command": f"touch {MARK}"}
ATTACKS = {
    "popen": ("extractor.features", {"class": "subprocess.Popen", **TOUCH}, "Popen"),
    "system": (ACTIVATION, {"constructor": "os.system", **TOUCH}, "unknown class"),
    "built_system": (ACTIVATION, {"class": "os.system", **TOUCH}, "unknown class"),
    "nested": (OPTIONS, {"a": [1, {"b": {"class": "os.system"}}]}, "unknown class"),
    "yaml": ("extractor", f"!apply:os.system ['touch {MARK}']", "extractor must be"),
    "yaml_inside": (
        "recognizer.transformer.attention_type",
        f"!apply:os.system ['touch {MARK}']",
        "unknown mixer",
    ),
    "allowed_prefix": (
        ACTIVATION,
        {"constructor": "torch.nn.GELU.__init__.__globals__"},
        "unknown class",
    ),
    "dotted": (
        "extractor.class",
        "hyperconformer.FeatureExtractor",
        "did you mean 'FeatureExtractor'",
    ),
    "constructor_as_class": (ACTIVATION, {"class": "GELU"}, "unknown class 'GELU'"),
    "class_as_constructor": (
        ACTIVATION,
        {"constructor": "Recognizer"},
        "activation.constructor: unknown class 'Recognizer'",
    ),
    "class_as_list": ("extractor.class", ["Fbank"], "unknown class"),
    "class_as_null": ("extractor.class", None, "unknown class None"),
    "class_as_object": ("extractor.class", {"class": "Fbank"}, "unknown class"),
    "no_class": ("extractor", {"num_features": 16}, "extractor: .*the key 'class'"),
    "both": (
        "extractor.features.constructor",
        "GELU",
        "unknown argument of Fbank 'constructor'",
    ),
    "searcher": (
        "extractor",
        {"class": "JointSearcher", "lm_folder": "../../etc"},
        "unknown class 'JointSearcher'",
    ),
    "tokenizer": (
        "extractor",
        {"class": "sentencepiece.SentencePieceProcessor", "model_file": "/dev/zero"},
        "unknown class",
    ),
    "open_file": ("extractor", {"class": "io.FileIO", "file": MARK}, "unknown class"),
    "pickle_load": ("extractor", {"class": "torch.load", "f": MARK}, "unknown class"),
    "other_part": ("extractor", {"class": "Fbank"}, "lacks|other tensors|has no"),
    "other_inner_part": (
        "recognizer.frontend",
        {"class": "Fbank"},
        "recognizer.frontend must|recognizer.frontend: must be ConvolutionFrontEnd",
    ),
    "dunder": ("extractor.__class__", "os.system", "unknown argument"),
    "self": ("extractor.self", 1, "unknown argument of FeatureExtractor 'self'"),
    "key": ("extractor.a b", 1, "'a b' cannot be a key"),
    "long_key": ("a" * 101, 1, "cannot be a key"),
    "surrogate": ("extractor.\ud800", 1, "cannot be a key"),
    "number": ("extractor.num_features", 123456789012, "numbers go from"),
    "inner_number": (OPTIONS, [1, {"b": [2, 10**9]}], r"s\[1\].b\[1\]: numbers"),
    "not_a_number": ("recognizer.transformer.dropout", math.nan, "dropout: numbers go"),
    "infinite": ("recognizer.transformer.dropout", -math.inf, "dropout: numbers go"),
    "deep": (OPTIONS, json.loads("[" * 60 + "]" * 60), "levels deep"),
    "unknown_key": ("trusted", True, "unknown key 'trusted'"),
    "near_key": ("sample_rat", 16000, "did you mean 'sample_rate'"),
    "version_2": ("version", 2, "version: .*a newer hyperconformer is needed"),
    "version_as_text": ("version", "1", "version must be int, got '1'"),
    "version_as_truth": ("version", True, "version must be int, got True"),
    "another_tokenizer": ("tokenizer", "pickle", "tokenizer must be .*sentencepiece"),
    "ngram_path": (
        "ngram",
        {"lm_weight": 0.1, "word_bonus": 0.1, "arpa": "/etc/passwd"},
        "ngram.unknown key 'arpa'",
    ),
    "ngram_of_nothing": ("ngram", {}, "lacks ngram.lm_weight, ngram.word_bonus"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_from_strangers_run_nothing(
    folder, change_settings, monkeypatch, name
):
    place, value, message = ATTACKS[name]
    monkeypatch.chdir(folder.parent)
    change_settings(folder, **{place: value})
    with pytest.raises(ValueError, match=message) as caught:
        ASR.from_hparams(folder)
    assert "config.json" in str(caught.value) or "safetensors" in str(caught.value)
    assert not pathlib.Path(MARK).exists()


# Text that stands in the place of the extractor's normalization.
TEXTS = {
    "digits": ("9" * 5000, "not valid JSON: Exceeds the limit|numbers go"),
    "long_number": ("9" * 4000, "normalization: numbers go from"),
    "past_floats": ("1e999", "normalization: numbers go from"),
    "deeper": ("[" * 7000 + "]" * 7000, "levels deep"),
    "deep_objects": ('{"a":' * 7000 + "1" + "}" * 7000, "levels deep"),
    "hidden_depth": (
        '["' + "]" * 20000 + '", ' + "[" * 20000 + "]" * 20000 + "]",
        "levels deep",
    ),
    "twice": ('"utterance", "normalization": "level"', "'normalization' stands twice"),
    "comment": ('"utterance" // text', "line 1: not valid JSON"),
    "single_quotes": ("'utterance'", "line 1: not valid JSON"),
    "trailing_comma": ('"utterance",', "not valid JSON"),
    "hexadecimal": ("0x10", "not valid JSON"),
    "python": ("None", "not valid JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_only_strict_json_is_read(folder, change_settings, name):
    value, message = TEXTS[name]
    change_settings(folder)
    path = folder / "config.json"
    text = path.read_text()
    assert '"utterance"' in text
    path.write_text(text.replace('"utterance"', value))
    with pytest.raises(ValueError, match=message) as caught:
        ASR.from_hparams(folder)
    assert "config.json" in str(caught.value)


TRANSFORMER = "recognizer.transformer."
SETTINGS = {
    "huge_width": ("d_model", 1000000000000, "numbers go from"),
    "wide": ("d_model", 16384, "far larger"),
    "negative_width": ("d_model", -16, "cannot be built"),
    "negative_layers": ("num_encoder_layers", -1, "cannot be built"),
    "endless_layers": ("num_encoder_layers", 1000000000, "numbers go from"),
    "many_layers": ("num_encoder_layers", 16384, "far larger"),
    "no_heads": ("nhead", 0, "cannot be built"),
    "other_width": ("d_ffn", 48, "has shape .* ask for"),
    "huge_dummy": (
        "recognizer.frontend.input_shape",
        [16000, 16000, 16000],
        "far larger",
    ),
    "huge_kernel": ("kernel_size", 16383, "has shape"),
    "even_kernel": ("kernel_size", 8, "cannot be built"),
    "huge_filters": ("extractor.features.n_mels", 16384, "has shape|far larger"),
    "huge_window": ("extractor.features.n_fft", 10**9, "numbers go from"),
    "no_features": ("extractor.features.n_mels", 0, "cannot be built|has shape"),
    "unknown_option": ("shell", "touch", "transformer: unknown argument .*'shell'"),
    "unknown_mixer": ("attention_type", "os.system", "unknown mixer"),
    "mixer_as_number": ("attention_type", 3, "attention_type: must be str or"),
    "text_for_number": ("d_model", "wide", "d_model: must be int, got 'wide'"),
    "fraction": ("d_model", 16.5, "d_model: must be int, got 16.5"),
    "truth_for_number": ("d_model", True, "d_model: must be int, got True"),
    "null_for_number": ("d_model", None, "d_model: must be int, got None"),
    "list_for_number": ("d_model", [16], r"d_model: must be int, got \[16\]"),
    "text_for_activation": ("activation", "GELU", "activation: must be a class or"),
    "text_in_a_list": (
        "recognizer.frontend.strides",
        [2, "2"],
        r"frontend.strides: must be .*List\[int\], got \[2, '2'\]",
    ),
    "text_for_features": ("extractor.features", "Fbank", "features: must be Module"),
    "text_without_annotation": (
        "extractor.features.n_mels",
        "16",
        "features.n_mels: must be a finite number",
    ),
    "list_for_options": ("mixer_options", [1], "mixer_options: must be dict"),
    "strange_rate": ("sample_rate", 3, "sample_rate"),
    "text_for_rate": ("sample_rate", "fast", "sample_rate must be int, got 'fast'"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_are_refused(folder, change_settings, name):
    place, value, message = SETTINGS[name]
    top = "." in place or place == "sample_rate"
    change_settings(folder, **{place if top else TRANSFORMER + place: value})
    with pytest.raises(ValueError, match=message):
        ASR.from_hparams(folder)


@pytest.mark.parametrize("key", ["version", "tokenizer", "sample_rate", "extractor"])
def test_no_key_may_be_missing(folder, key):
    settings = json.loads((folder / "config.json").read_text())
    del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{key}|extractor, recognizer, but holds"):
        ASR.from_hparams(folder)


class NewTensors(TorchDispatchMode):
    """Sums the bytes of new tensors."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.bytes += result.nbytes
        return result


def test_weights_are_compared_before_memory_is_taken(folder, change_settings):
    with NewTensors() as new:
        ASR.from_hparams(folder)
    assert new.bytes > 10**5
    change_settings(folder, **{"recognizer.transformer.d_ffn": 48})
    with NewTensors() as new, pytest.raises(ValueError, match="has shape"):
        ASR.from_hparams(folder)
    # A few numbers that constructors write down.
    assert new.bytes < 1000


def test_wide_settings_are_refused_before_memory_is_taken(folder, change_settings):
    resource = pytest.importorskip("resource")
    change_settings(folder, **{"recognizer.transformer.d_model": 16384})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="far larger"):
        ASR.from_hparams(folder)
    # One layer of that width would be gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


class Bomb:
    """Touches a file when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def write_header(path, header, body=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def weights(change):
    """An attack on the weights: loads them, changes them, saves them."""

    def attack(folder, outside):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return attack


def link_out(name):
    def attack(folder, outside):
        shutil.copy(folder / name, outside / name)
        (folder / name).unlink()
        (folder / name).symlink_to(outside / name)

    return attack


def pickled(name):
    def attack(folder, outside):
        with open(folder / name, "wb") as file:
            pickle.dump(Bomb(outside / "executed"), file)

    return attack


def replaced(name, content):
    return lambda folder, outside: (folder / name).write_bytes(content)


def truncated(name, keep):
    def attack(folder, outside):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * keep)])

    return attack


def fifo(name):
    def attack(folder, outside):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return attack


def sparse(name, size):
    def attack(folder, outside):
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return attack


def loop(folder, outside):
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").symlink_to("tokenizer.model")


def lying_header(folder, outside):
    header = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    write_header(folder / "model.safetensors", header, bytes(64))


def negative_shape(folder, outside):
    header = {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}
    write_header(folder / "model.safetensors", header, bytes(16))


def bomb(folder, outside):
    """As many values as the limit of the file allows."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["recognizer"]["transformer"]["mixer_options"] = {"a": [[]] * 20000}
    path.write_text(json.dumps(settings, separators=(",", ":")))
    assert 60000 < path.stat().st_size < 2**16


def eighths(tensors):
    tensors["extractor.mean"] = tensors["extractor.mean"].to(torch.float8_e4m3fn)


def nan(tensors):
    next(iter(tensors.values())).fill_(float("nan"))


def rename(tensors):
    tensors["evil"] = tensors.pop("extractor.mean")


def integers(tensors):
    tensors["extractor.mean"] = tensors["extractor.mean"].long()


def transpose(tensors):
    for key, value in tensors.items():
        if value.dim() == 2 and value.shape[0] != value.shape[1]:
            tensors[key] = value.T.contiguous()
            return


def with_ngram(attack=None, weight=0.3):
    """A folder with word n-grams, then attacked."""

    def change(folder, outside):
        train_arpa(["AB BA"], folder / "lm.arpa")
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        settings["ngram"] = {"lm_weight": weight, "word_bonus": 0.5}
        path.write_text(json.dumps(settings))
        if attack:
            attack(folder, outside)

    return change


FILE_ATTACKS = {
    "pickle_as_weights": (pickled("model.safetensors"), "safetensors is damaged"),
    "pickle_as_json": (pickled("config.json"), "config.json"),
    "pickle_as_tokenizer": (pickled("tokenizer.model"), "tokenizer.model is damaged"),
    "json_elsewhere": (link_out("config.json"), "leads out of its folder"),
    "weights_elsewhere": (link_out("model.safetensors"), "leads out of its folder"),
    "tokenizer_elsewhere": (link_out("tokenizer.model"), "leads out of its folder"),
    "fifo_as_weights": (fifo("model.safetensors"), "lacks"),
    "fifo_as_tokenizer": (fifo("tokenizer.model"), "lacks tokenizer.model"),
    "link_to_itself": (loop, "lacks tokenizer.model"),
    "truncated_weights": (
        truncated("model.safetensors", 0.9),
        "safetensors is damaged",
    ),
    "half_weights": (truncated("model.safetensors", 0.5), "safetensors is damaged"),
    "truncated_json": (truncated("config.json", 0.3), "config.json"),
    "yaml_as_json": (
        replaced("config.json", b"sample_rate: 16000\n"),
        "line 1: not valid JSON",
    ),
    "fifo_as_json": (fifo("config.json"), "lacks config.json"),
    "truncated_tokenizer": (truncated("tokenizer.model", 0.5), "tokenizer.model"),
    "empty_weights": (replaced("model.safetensors", b""), "0 bytes"),
    "empty_json": (replaced("config.json", b""), "0 bytes"),
    "binary_json": (replaced("config.json", b"\xff\xfe\x00a"), "config.json"),
    "list_as_json": (replaced("config.json", b"[1, 2]"), "keys and values"),
    "header_of_exabytes": (
        replaced("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        "safetensors is damaged",
    ),
    "tensor_past_the_end": (lying_header, "safetensors is damaged"),
    "negative_shape": (negative_shape, "safetensors is damaged"),
    "gigabytes_of_json": (sparse("config.json", 2**32), "4294967296 bytes"),
    "gigabytes_of_tokenizer": (sparse("tokenizer.model", 2**32), "4294967296 bytes"),
    "terabytes_of_weights": (sparse("model.safetensors", 2**36), "68719476736 bytes"),
    "json_bomb": (bomb, "unknown option of mixer 'hypermixing' 'a'"),
    "float8_weights": (weights(eighths), "extractor.mean is F8_E4M3; known: F64"),
    "nan_weights": (weights(nan), "NaN or infinite"),
    "renamed_weights": (weights(rename), "extractor.mean missing, evil not asked"),
    "integer_weights": (weights(integers), "torch.int64, expected torch.float32"),
    "transposed_weights": (weights(transpose), "has shape"),
    "ngram_elsewhere": (with_ngram(link_out("lm.arpa")), "leads out of its folder"),
    "pickle_as_ngram": (with_ngram(pickled("lm.arpa")), "no ARPA file"),
    "end_as_a_word": (
        with_ngram(
            replaced("lm.arpa", b"\\data\\\nngram 1=1\n\n\\1-grams:\n-1 \\end\\")
        ),
        "no ARPA file",
    ),
    "huge_logarithms": (
        with_ngram(
            replaced(
                "lm.arpa",
                b"\\data\\\nngram 1=1\n\n\\1-grams:\n1e308\tA\n\n\\end\\\n",
            )
        ),
        "logarithms go from",
    ),
    "half_an_ngram": (with_ngram(truncated("lm.arpa", 0.5)), "no ARPA file"),
    "gigabytes_of_ngram": (with_ngram(sparse("lm.arpa", 2**32)), "4294967296 bytes"),
    "text_for_a_weight": (with_ngram(weight="much"), "ngram.lm_weight must be"),
    "negative_weight": (with_ngram(weight=-1.0), "lm_weight must be >= 0"),
}


@pytest.mark.parametrize("name", FILE_ATTACKS)
def test_files_from_strangers_are_refused(folder, tmp_path, name):
    attack, message = FILE_ATTACKS[name]
    outside = tmp_path / "outside"
    outside.mkdir()
    attack(folder, outside)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ASR.from_hparams(folder)
    assert not (outside / "executed").exists()


def test_a_hub_models_files_are_links_to_its_own_blobs(tiny_model, tmp_path):
    hub = tmp_path / "models--owner--name"
    folder, blobs = hub / "snapshots/1", hub / "blobs"
    shutil.copytree(tiny_model, folder)
    blobs.mkdir()
    for number, name in enumerate(sorted(os.listdir(folder))):
        (folder / name).rename(blobs / f"{number}")
        (folder / name).symlink_to(f"../../blobs/{number}")
    assert ASR.from_hparams(folder).sample_rate_hz == 16000


SECRET = "user: [secret\n"


@pytest.mark.parametrize(
    "inside,target",
    [
        # A folder that is no cache, whatever its parent is called.
        ("snapshots/1", "secret"),
        ("snapshots/1", "blobs/secret"),
        # Inside the repository's folder, but no blob.
        ("models--a--b/snapshots/1", "models--a--b/secret"),
        ("models--a--b/snapshots/1", "models--a--b/snapshots/2/secret"),
        ("models--a--b/snapshots/1", "models--a--b/blobs/more/secret"),
        # Another repository's blob.
        ("models--a--b/snapshots/1", "models--a--c/blobs/secret"),
        ("models--a--b/snapshots/1", "blobs/secret"),
        ("models--a--b/snapshots/1/deeper", "models--a--b/blobs/secret"),
        ("models--a--b/other/1", "models--a--b/blobs/secret"),
    ],
)
def test_no_link_leads_out_of_a_folder_in_a_cache(tiny_model, tmp_path, inside, target):
    folder, secret = tmp_path / inside, tmp_path / target
    shutil.copytree(tiny_model, folder)
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(SECRET)
    for name in ("config.json", "tokenizer.model"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    for read in (ASR.from_hparams, read_settings):
        with pytest.raises(ValueError, match="leads out of its folder") as caught:
            read(folder)
        assert "user:" not in str(caught.value)
    with pytest.raises(ValueError, match="leads out of its folder"):
        settings = SimpleNamespace(train_split="train", tokenizer_file=None)
        settings.tokens_from = folder
        prepare_tokenizer(settings, {"train": None}, tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))


def test_the_blobs_of_a_cache_may_not_be_elsewhere(tiny_model, tmp_path):
    hub = tmp_path / "models--owner--name"
    folder = hub / "snapshots/1"
    shutil.copytree(tiny_model, folder)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secret").write_text(SECRET)
    (hub / "blobs").symlink_to(tmp_path / "etc")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("../../blobs/secret")
    with pytest.raises(ValueError, match="leads out of its folder"):
        ASR.from_hparams(folder)


def test_the_folder_model_of_a_run_is_no_link_elsewhere(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(folder)
    with pytest.raises(ValueError, match="model leads out of its folder"):
        ASR.from_hparams(run)


def test_a_broken_file_is_not_quoted(folder):
    (folder / "config.json").write_text('{"a":\n' + SECRET)
    with pytest.raises(ValueError, match="line 2: not valid JSON") as caught:
        ASR.from_hparams(folder)
    for error in (caught.value, caught.value.__cause__):
        assert "secret" not in str(error)


@pytest.mark.parametrize("text", [b"\0", b'{"a": 1}\0', b'{"a": "\x07"}', b"[\0"])
def test_characters_that_json_has_not_are_refused(folder, text):
    for content in (text, (folder / "config.json").read_bytes() + text):
        (folder / "config.json").write_bytes(content)
        for read in (ASR.from_hparams, read_settings):
            with pytest.raises(ValueError, match="config.json.* not valid JSON: "):
                read(folder)


def test_what_is_written_for_speechbrain_is_never_opened(folder, tmp_path):
    path, mark = folder / "hyperparams.yaml", tmp_path / "executed"
    path.write_text(f"!apply:os.system ['touch {mark}']")
    assert ASR.from_hparams(folder).sample_rate_hz == 16000
    path.unlink()
    os.mkfifo(path)  # whoever opens it waits
    for trusted in (False, True):
        assert ASR.from_hparams(folder, trusted=trusted).sample_rate_hz == 16000
    assert read_settings(folder)["sample_rate"] == 16000
    assert not mark.exists()


def test_other_files_of_the_folder_are_never_opened(folder, tmp_path):
    mark = tmp_path / "executed"
    for name in ("custom.py", "__init__.py", "setup.py", "sitecustomize.py"):
        (folder / name).write_text(f"import os; os.system('touch {mark}')\n")
    pickled("model.ckpt")(folder, tmp_path)
    pickled("recognizer.ckpt")(folder, tmp_path)
    ASR.from_hparams(folder)
    assert not mark.exists()


def test_no_ngrams_but_the_folders_own_are_read(folder, change_settings):
    change_settings(folder, ngram={"lm_weight": 0.3, "word_bonus": 0.5})
    assert ASR.from_hparams(folder).ngram == {}
    train_arpa(["AB BA"], folder / "lm.arpa")
    assert ASR.from_hparams(folder).ngram == {
        "arpa": folder / "lm.arpa",
        "lm_weight": 0.3,
        "word_bonus": 0.5,
    }


def test_ngrams_without_weights_are_refused(folder):
    train_arpa(["AB BA"], folder / "lm.arpa")
    with pytest.raises(ValueError, match="config.json lacks ngram, with lm_weight and"):
        ASR.from_hparams(folder)


def test_a_hub_models_ngrams_are_read_in_python(
    tiny_model, change_settings, tmp_path, monkeypatch
):
    """The cache links them to a file without suffix; no C++ reads them."""
    monkeypatch.setitem(sys.modules, "kenlm", None)
    hub = tmp_path / "models--owner--name"
    folder, blobs = hub / "snapshots/1", hub / "blobs"
    shutil.copytree(tiny_model, folder)
    blobs.mkdir()
    train_arpa(["AB BA"], blobs / "c0ffee")
    (folder / "lm.arpa").symlink_to(blobs / "c0ffee")
    change_settings(folder, ngram={"lm_weight": 0.3, "word_bonus": 0.5})
    asr = ASR.from_hparams(folder)
    assert type(asr.search.search.lm).__name__ == "NGramScorer"


def test_a_long_word_takes_no_memory(folder):
    resource = pytest.importorskip("resource")
    with_ngram()(folder, None)
    train_arpa(["A" * 10**6], folder / "lm.arpa")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ASR.from_hparams(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    from hyperconformer.training.data import train_tokenizer

    manifest = tmp_path / "train.csv"
    manifest.write_text("ID,duration,wav,spk_id,wrd\n1,1.0,a.wav,s,XYZ\n")
    train_tokenizer(manifest, tmp_path / "tokenizer", "char", 0)
    file = next((tmp_path / "tokenizer").glob("*.model"))
    shutil.copy(file, folder / "tokenizer.model")
    with pytest.raises(ValueError, match="tokenizer has 7 tokens, its recogniser 9"):
        ASR.from_hparams(folder)


def test_classes_of_ones_own_stand_behind_a_flag(folder, change_settings):
    own = "torch.nn.Softplus"
    settings = {ACTIVATION: {"constructor": own}}
    settings["recognizer.transformer.max_length"] = 20000  # and sizes of one's own
    change_settings(folder, **settings)
    for message in ("numbers go from", "unknown class 'torch.nn.Softplus'"):
        with pytest.raises(ValueError, match=message):
            load_model(folder, ["extractor", "recognizer"])
        change_settings(folder, **{"recognizer.transformer.max_length": 2500})
    load_model(folder, ["extractor", "recognizer"], trusted=True)
    for missing in ("torch.nn.Softminus", "no_such_module.Softplus"):
        change_settings(folder, **{ACTIVATION: {"constructor": missing}})
        with pytest.raises(ValueError, match=f"constructor: cannot import '{missing}'"):
            load_model(folder, ["extractor", "recognizer"], trusted=True)


def test_half_precision_weights_are_read_as_full_ones(folder):
    path = folder / "model.safetensors"
    halves = {
        key: value.half() if value.is_floating_point() else value
        for key, value in load_file(path).items()
    }
    save_file(halves, path)
    state = ASR.from_hparams(folder).recognizer.state_dict()
    for key, value in state.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.equal(value, halves[f"recognizer.{key}"].to(value.dtype))


def test_the_hub_is_asked_for_a_models_files_only(folder, monkeypatch):
    asked = {}

    def snapshot(name, allow_patterns):
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_model("someone/model") == folder
    files = ["config.json", "model.safetensors", "tokenizer.model"]
    files += ["lm.arpa", "lm.bin", "words.txt", "verify.json"]
    assert asked == {"someone/model": files}


def test_a_hub_without_an_answer_is_named(monkeypatch):
    def snapshot(name, allow_patterns):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError, match="someone/model.*no route"):
        find_model("someone/model")


def experiments():
    files = [*ROOT.glob("hparams/**/*.yaml"), *ROOT.glob("recipes/*/hparams/**/*.yaml")]
    # Ablation files are plans over experiments, and fragments are changes to them.
    return [
        file for file in files if file.parent.name not in ("ablations", "fragments")
    ]


@pytest.mark.integration
@pytest.mark.parametrize("file", experiments(), ids=lambda file: file.name)
def test_a_model_of_every_experiment_can_be_saved_and_built(file):
    folders = {"data_folder": "", "output_folder": "", "vocab_size": 30}
    config = from_hyperpyyaml(resolve_config(read_config(file), folders))
    names = [name for name in MODULES if name in config]
    assert names
    text = json.dumps({"version": 1, "tokenizer": "sentencepiece", **config})
    with torch.device("meta"):
        modules = build(parse_config(text, file), names, file)
    assert all(value.is_meta for m in modules.values() for value in m.parameters())
