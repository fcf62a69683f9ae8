"""Model folders from strangers: none runs code, hangs or fills the memory."""

import json
import os
import pathlib
import pickle
import shutil
import signal
import struct
import sys

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

from hyperconformer.config import read_config
from hyperconformer.hub.folder import find_model, load_model, read_settings
from hyperconformer.hub.safe_yaml import BUILT, NAMED, load_safely
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


# What is put into hyperparams.yaml, as the value of a new key; {mark} is a file that
# appears if the thing is carried out.
YAML_ATTACKS = {
    "apply": ("!apply:os.system ['touch {mark}']", "!apply:os.system.*not allowed"),
    "new_popen": ("!new:subprocess.Popen ['touch {mark}']", "unknown name.*Popen"),
    "name_system": ("!name:os.system {{command: touch {mark}}}", "unknown name"),
    "python_apply": (
        "!!python/object/apply:os.system ['touch {mark}']",
        "python/object/apply.*not allowed",
    ),
    "python_new": ("!!python/object/new:os.system ['touch {mark}']", "not allowed"),
    "python_name": ("!!python/name:os.system ''", "not allowed"),
    "applyref": ("!applyref:os.system {{command: touch {mark}}}", "not allowed"),
    "include": ("!include:/etc/passwd", "not allowed"),
    "module": ("!module:os", "not allowed"),
    "copy": ("!copy <extractor>", "not allowed"),
    "nested": ("{{a: [1, {{b: !apply:os.system ['touch {mark}']}}]}}", "not allowed"),
    "allowed_prefix": ("!new:torch.nn.GELU.__init__.__globals__", "unknown name"),
    "named_only": ("!new:torch.nn.GELU", "unknown name after !new"),
    "open_file": ("!new:io.FileIO {{file: {mark}, mode: w}}", "unknown name"),
    "pickle_load": ("!new:torch.load {{f: model.ckpt}}", "unknown name"),
    "number": ("123456789012", "numbers go from"),
    "digits": ("9" * 5000, "4096 characters|integer string|numbers go"),
    "not_a_number": (".nan", "numbers go from"),
    "infinite": ("-.inf", "numbers go from"),
    "deep": ("[" * 60 + "]" * 60, "levels deep"),
    "deeper": ("[" * 7000 + "]" * 7000, "levels deep"),
    "deep_list": ("\n  " + "- " * 7000 + "1", "too deep|levels deep|not valid YAML"),
    "bytes": ("!!binary aGk=", "not allowed"),
    "sets": ("!!set {{a, b}}", "not allowed"),
    "keys": ("{{[1]: 2}}", "keys must be plain strings"),
    "tuple": ("(1, !apply:os.system ['touch {mark}'])", "plain values|not valid YAML"),
}


@pytest.mark.parametrize("name", YAML_ATTACKS)
def test_yaml_from_strangers_runs_nothing(folder, tmp_path, name):
    value, message = YAML_ATTACKS[name]
    mark = tmp_path / "executed"
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write("attack: " + value.format(mark=mark) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        ASR.from_hparams(folder)
    assert "hyperparams.yaml" in str(caught.value)
    assert not mark.exists()


def with_line(folder, line, value):
    """Change one setting, the first of its name."""
    path = folder / "hyperparams.yaml"
    lines = path.read_text().splitlines()
    index = next(i for i, text in enumerate(lines) if text.strip().startswith(line))
    indent = lines[index][: -len(lines[index].lstrip())]
    lines[index] = f"{indent}{line}{value}"
    path.write_text("\n".join(lines) + "\n")


SETTINGS = {
    "huge_width": ("d_model:", " 1000000000000", "numbers go from"),
    "wide": ("d_model:", " 16384", "far larger"),
    "negative_width": ("d_model:", " -16", "cannot be built"),
    "negative_layers": ("num_encoder_layers:", " -1", "cannot be built"),
    "endless_layers": ("num_encoder_layers:", " 1000000000", "numbers go from"),
    "many_layers": ("num_encoder_layers:", " 16384", "far larger"),
    "no_heads": ("nhead:", " 0", "cannot be built"),
    "other_width": ("d_ffn:", " 48", "has shape .* ask for"),
    "huge_dummy": ("input_shape:", " [16000, 16000, 16000]", "far larger"),
    "huge_kernel": ("kernel_size:", " 16383", "has shape"),
    "even_kernel": ("kernel_size:", " 8", "cannot be built"),
    "huge_filters": ("n_mels:", " 16384", "has shape|far larger"),
    "no_features": ("n_mels:", " 0", "cannot be built|has shape"),
    "unknown_option": ("nhead:", " 2\n    shell: touch", "unexpected keyword"),
    "unknown_mixer": ("attention_type:", " os.system", "unknown mixer"),
    "text_for_number": ("d_model:", " wide", "cannot be built"),
    "strange_rate": ("sample_rate:", " 3", "sample_rate"),
    "no_rate": ("sample_rate:", " fast", "sample_rate"),
    "itself": ("recognizer:", " !ref <recognizer>", "not valid|refers to itself"),
    "tokenizer_as_model": (
        "extractor:",
        " !new:sentencepiece.SentencePieceProcessor\n  model_file: /dev/zero\nrest:",
        "only for SpeechBrain",
    ),
    "search_as_model": (
        "extractor:",
        " !new:hyperconformer.JointSearcher\n  lm_folder: ../../etc\nrest:",
        "only for SpeechBrain",
    ),
    "twice": ("sample_rate:", " 16000\nsample_rate: 8000", "stands twice"),
    "far_ref": ("d_model:", " !ref <extractor.__class__>", "!ref must name a key"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_are_refused(folder, name):
    line, value, message = SETTINGS[name]
    with_line(folder, line, value)
    with pytest.raises(ValueError, match=message):
        ASR.from_hparams(folder)


def test_wide_settings_are_refused_before_memory_is_taken(folder):
    resource = pytest.importorskip("resource")
    with_line(folder, "d_model:", " 16384")
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


def bombs(kind):
    """Aliases that a careless reader unfolds to 2**60 values."""
    lines = ["a0: &a0 {x: 1}" if kind == "merge" else "a0: &a0 [1, 1]"]
    for i in range(60):
        twice = f"*a{i}, *a{i}"
        value = f"{{<<: [{twice}]}}" if kind == "merge" else f"[{twice}]"
        lines.append(f"a{i + 1}: &a{i + 1} {value}")

    def attack(folder, outside):
        text = (folder / "hyperparams.yaml").read_text()
        text = text.replace(
            "attention_type:", "mixer_options: *a60\n    attention_type:"
        )
        (folder / "hyperparams.yaml").write_text("\n".join(lines) + "\n" + text)

    return attack


def own_alias(folder, outside):
    text = (folder / "hyperparams.yaml").read_text()
    text = text.replace("mixer_options: {}", "")
    text = text.replace(
        "    attention_type:", "    mixer_options: &m {m: *m}\n    attention_type:"
    )
    (folder / "hyperparams.yaml").write_text(text)


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


def with_ngram(attack=None, weight="0.3"):
    """A folder with word n-grams, then attacked."""

    def change(folder, outside):
        train_arpa(["AB BA"], folder / "lm.arpa")
        with open(folder / "hyperparams.yaml", "a") as file:
            file.write(f"lm_weight: {weight}\nword_bonus: 0.5\n")
        if attack:
            attack(folder, outside)

    return change


FILE_ATTACKS = {
    "pickle_as_weights": (pickled("model.safetensors"), "safetensors is damaged"),
    "pickle_as_yaml": (pickled("hyperparams.yaml"), "hyperparams.yaml"),
    "pickle_as_tokenizer": (pickled("tokenizer.model"), "tokenizer.model is damaged"),
    "yaml_elsewhere": (link_out("hyperparams.yaml"), "leads out of its folder"),
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
    "truncated_yaml": (truncated("hyperparams.yaml", 0.3), "hyperparams.yaml"),
    "truncated_tokenizer": (truncated("tokenizer.model", 0.5), "tokenizer.model"),
    "empty_weights": (replaced("model.safetensors", b""), "0 bytes"),
    "empty_yaml": (replaced("hyperparams.yaml", b""), "0 bytes"),
    "binary_yaml": (replaced("hyperparams.yaml", b"\xff\xfe\x00a"), "hyperparams.yaml"),
    "list_as_yaml": (replaced("hyperparams.yaml", b"[1, 2]"), "keys and values"),
    "header_of_exabytes": (
        replaced("model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        "safetensors is damaged",
    ),
    "tensor_past_the_end": (lying_header, "safetensors is damaged"),
    "negative_shape": (negative_shape, "safetensors is damaged"),
    "gigabytes_of_yaml": (sparse("hyperparams.yaml", 2**32), "4294967296 bytes"),
    "gigabytes_of_tokenizer": (sparse("tokenizer.model", 2**32), "4294967296 bytes"),
    "terabytes_of_weights": (sparse("model.safetensors", 2**36), "68719476736 bytes"),
    "alias_bomb": (bombs("alias"), "cannot be built|other tensors"),
    "merge_bomb": (bombs("merge"), "plain strings"),
    "alias_to_itself": (own_alias, "hyperparams.yaml"),
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
    "text_for_a_weight": (with_ngram(weight="much"), "lm_weight must be a number"),
    "negative_weight": (with_ngram(weight="-1.0"), "lm_weight must be >= 0"),
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
    for name in ("hyperparams.yaml", "tokenizer.model"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    for read in (ASR.from_hparams, read_settings):
        with pytest.raises(ValueError, match="leads out of its folder") as caught:
            read(folder)
        assert "user:" not in str(caught.value)
    with pytest.raises(ValueError, match="leads out of its folder"):
        config = {"train_split": "train", "tokenizer_file": None, "new_head": False}
        config["init_from"] = folder
        prepare_tokenizer(config, {"train": None}, tmp_path / "kept")
    assert not list(tmp_path.glob("kept/*"))


def test_the_blobs_of_a_cache_may_not_be_elsewhere(tiny_model, tmp_path):
    hub = tmp_path / "models--owner--name"
    folder = hub / "snapshots/1"
    shutil.copytree(tiny_model, folder)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/secret").write_text(SECRET)
    (hub / "blobs").symlink_to(tmp_path / "etc")
    (folder / "hyperparams.yaml").unlink()
    (folder / "hyperparams.yaml").symlink_to("../../blobs/secret")
    with pytest.raises(ValueError, match="leads out of its folder"):
        ASR.from_hparams(folder)


def test_the_folder_model_of_a_run_is_no_link_elsewhere(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(folder)
    with pytest.raises(ValueError, match="model leads out of its folder"):
        ASR.from_hparams(run)


def test_a_broken_file_is_not_quoted(folder):
    (folder / "hyperparams.yaml").write_text(f"a: 1\n{SECRET}")
    with pytest.raises(ValueError, match="line [23]: not valid YAML") as caught:
        ASR.from_hparams(folder)
    for error in (caught.value, caught.value.__cause__):
        assert "secret" not in str(error)


@pytest.mark.parametrize("text", [b"\0", b"a: 1\n\0", b"a: \x07b\n", b"a: [\0"])
def test_characters_that_yaml_has_not_are_refused(folder, text):
    for content in (text, (folder / "hyperparams.yaml").read_bytes() + text):
        (folder / "hyperparams.yaml").write_bytes(content)
        for read in (ASR.from_hparams, read_settings):
            with pytest.raises(
                ValueError, match="hyperparams.yaml is .*character #x00"
            ):
                read(folder)


def test_other_files_of_the_folder_are_never_opened(folder, tmp_path):
    mark = tmp_path / "executed"
    for name in ("custom.py", "__init__.py", "setup.py", "sitecustomize.py"):
        (folder / name).write_text(f"import os; os.system('touch {mark}')\n")
    pickled("model.ckpt")(folder, tmp_path)
    pickled("recognizer.ckpt")(folder, tmp_path)
    ASR.from_hparams(folder)
    assert not mark.exists()


def test_no_ngrams_but_the_folders_own_are_read(folder, tmp_path):
    outside = train_arpa(["AB BA"], tmp_path / "outside.arpa")
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write(f"lm_weight: 0.3\nword_bonus: 0.5\nngram: {outside}\n")
    assert ASR.from_hparams(folder).ngram == {}
    train_arpa(["AB BA"], folder / "lm.arpa")
    assert ASR.from_hparams(folder).ngram == {
        "arpa": folder / "lm.arpa",
        "lm_weight": 0.3,
        "word_bonus": 0.5,
    }


def test_a_hub_models_ngrams_are_read_in_python(tiny_model, tmp_path, monkeypatch):
    """The cache links them to a file without suffix; no C++ reads them."""
    monkeypatch.setitem(sys.modules, "kenlm", None)
    hub = tmp_path / "models--owner--name"
    folder, blobs = hub / "snapshots/1", hub / "blobs"
    shutil.copytree(tiny_model, folder)
    blobs.mkdir()
    train_arpa(["AB BA"], blobs / "c0ffee")
    (folder / "lm.arpa").symlink_to(blobs / "c0ffee")
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write("lm_weight: 0.3\nword_bonus: 0.5\n")
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


def test_the_permissive_reader_stands_behind_a_flag(folder):
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write("home: !apply:os.getcwd\n")
    with pytest.raises(ValueError, match="not allowed"):
        load_model(folder, ["recognizer"])
    config, _ = load_model(folder, ["extractor", "recognizer"], trusted=True)
    assert config["home"] == os.getcwd()


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
    files = ["hyperparams.yaml", "model.safetensors", "tokenizer.model", "lm.arpa"]
    assert asked == {"someone/model": files}


def test_a_hub_without_an_answer_is_named(monkeypatch):
    def snapshot(name, allow_patterns):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(FileNotFoundError, match="someone/model.*no route"):
        find_model("someone/model")


def test_every_experiment_uses_only_listed_names():
    files = [*ROOT.glob("hparams/**/*.yaml"), *ROOT.glob("recipes/*/hparams/**/*.yaml")]
    # Ablation files are plans over experiments, not experiments.
    files = [file for file in files if file.parent.name != "ablations"]
    assert len(files) >= 5
    for file in files:
        tree = YAML().load(read_config(file))
        for key in {"extractor", "recognizer", "language_model"} & set(tree):
            for tag in tags(tree[key]):
                kind, _, name = tag.partition(":")
                known = {"!new": BUILT, "!name": NAMED}.get(kind, {name})
                assert name in known, f"{file}: add {name} to safe_yaml.py"


def tags(node):
    """The tags of a tree, its own among them."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag:
        yield tag
    values = node.values() if isinstance(node, dict) else node
    if isinstance(node, (dict, list)):
        for value in values:
            yield from tags(value)


def test_values_are_what_hyperpyyaml_makes_of_them():
    from hyperpyyaml import load_hyperpyyaml

    text = (
        "a: {i: 3, f: 1.5, e: 1e-3, b: True, c: false, n: null, s: text}\n"
        "b: [(1, 2.5), '(1, 2)', (False, name), ()]\n"
        "c: !ref <a>\nd: !name:torch.nn.GELU\n  approximate: tanh\n"
    )
    ours = load_safely(text, "t", ["a", "b", "c", "d"])
    theirs = load_hyperpyyaml(text)
    assert ours["a"] == theirs["a"] and ours["b"] == theirs["b"]
    assert ours["c"] is ours["a"] and ours["d"].keywords == theirs["d"].keywords
