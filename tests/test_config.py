"""Experiment files: inheritance, overrides and strict keys."""

import pathlib
import re

import pytest
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

from hyperconformer.config import read_config, resolve_config
from hyperconformer.training.settings import ASRSettings, LanguageModelSettings

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = {"asr": ASRSettings, "language_model": LanguageModelSettings}
FILES = sorted(
    path
    for folder in ("hparams", "recipes")
    for path in (ROOT / folder).rglob("*.yaml")
    if not {"fragments", "ablations"} & set(path.parts)
)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "lr: 0.1\nlayers: 2\nwidth: !ref <layers> * 4\n"
        "options: {a: 1, b: 2}\nthing: !new:collections.Counter\n  a: 1\n"
    )
    (tmp_path / "child.yaml").write_text("base: base.yaml\nlayers: 3\n")
    return tmp_path


def test_child_overrides_base(files):
    config = load_hyperpyyaml(read_config(files / "child.yaml"))
    assert config["layers"] == 3 and config["width"] == 12 and config["lr"] == 0.1


def test_a_base_may_be_a_shipped_recipe(files):
    (files / "mine.yaml").write_text("base: an4/hyperconformer\nd_model: 40\n")
    config = YAML().load(read_config(files / "mine.yaml"))
    assert config["corpus"] == "an4" and config["d_model"] == 40
    (files / "mine.yaml").write_text("base: [base.yaml, an4]\n")
    with pytest.raises(ValueError, match="mine.yaml: base: unknown recipe 'an4'"):
        read_config(files / "mine.yaml")


def test_later_bases_change_earlier_ones(files):
    (files / "changes.yaml").write_text("layers: 4\nlr: 0.2\n")
    (files / "both.yaml").write_text("base: [base.yaml, changes.yaml]\nlr: 0.3\n")
    config = load_hyperpyyaml(read_config(files / "both.yaml"))
    assert config["width"] == 16 and config["lr"] == 0.3
    (files / "changes.yaml").write_text("layer: 4\n")
    with pytest.raises(ValueError, match="changes.yaml.*'layer'.*'layers'"):
        read_config(files / "both.yaml")


def test_command_line_overrides_both(files):
    text = read_config(files / "child.yaml", "layers: 5\noptions: {b: 7}\n")
    config = load_hyperpyyaml(text)
    assert config["width"] == 20 and config["options"] == {"a": 1, "b": 7}


def test_tagged_mapping_is_replaced_not_merged(files):
    (files / "child.yaml").write_text(
        "base: base.yaml\nthing: !new:collections.OrderedDict\n  b: 3\n"
    )
    config = load_hyperpyyaml(read_config(files / "child.yaml"))
    assert dict(config["thing"]) == {"b": 3}


def test_unknown_key_in_child_is_an_error(files):
    (files / "child.yaml").write_text("base: base.yaml\nlayer: 3\n")
    with pytest.raises(ValueError, match="child.yaml.*'layer'.*'layers'"):
        read_config(files / "child.yaml")


def test_child_adds_what_it_refers_to_and_leaves_out_what_it_does_not_need(files):
    (files / "child.yaml").write_text(
        "base: base.yaml\nwithout: [layers]\nheads: 3\nwidth: !ref <heads> * 5\n"
    )
    config = load_hyperpyyaml(read_config(files / "child.yaml"))
    assert config["width"] == 15 and "layers" not in config
    (files / "child.yaml").write_text("base: base.yaml\nwithout: [layer]\n")
    with pytest.raises(ValueError, match="child.yaml.*'layer'.*'layers'"):
        read_config(files / "child.yaml")


def test_unknown_override_is_an_error(files):
    with pytest.raises(ValueError, match="unknown key 'lrr'; did you mean 'lr'"):
        read_config(files / "child.yaml", {"lrr": 3})


def test_key_that_nothing_reads_is_an_error(files):
    used = {"lr", "width", "options", "thing"}
    read_config(files / "child.yaml", used_keys=used)
    with pytest.raises(ValueError, match="'lr'"):
        read_config(files / "child.yaml", used_keys=used - {"lr"})


def test_key_whose_reader_is_overridden_is_no_error(files, caplog):
    used = {"lr", "options", "thing", "width"}
    (files / "child.yaml").write_text(
        "base: base.yaml\nlr: !ref <depth> * 2\ndepth: 3\n"
    )
    read_config(files / "child.yaml", "lr: null", used_keys=used)
    assert not caplog.text
    read_config(files / "child.yaml", "lr: 1\ndepth: 4", used_keys=used)
    assert "depth is given but not used" in caplog.text
    (files / "grandchild.yaml").write_text("base: child.yaml\nlr: 1\n")
    with pytest.raises(ValueError, match="grandchild.yaml.*'depth'"):
        read_config(files / "grandchild.yaml", used_keys=used)


@pytest.mark.parametrize(
    "name", ["42", "007", "1e3", "0x1F", "2026-11-28", "true", ".5", "12:30:45", "-1"]
)
def test_names_are_text(tmp_path, name):
    file = tmp_path / "a.yaml"
    file.write_text(
        "output_folder: x\nseed: 1\ntest_splits: []\nthing: {lexicon: x}\n"
        f"data_folder: {name}\nlog: !ref <output_folder>/log\ntokenizer_file: x\n"
    )
    text = read_config(
        file,
        f"output_folder: {name}\nseed: 007\ntest_splits: [{name}]\n"
        f"thing.lexicon: {name}\ntokenizer_file: null",
    )
    config = load_hyperpyyaml(text)
    assert config["output_folder"] == config["data_folder"] == name
    assert config["test_splits"] == [name] and config["thing"] == {"lexicon": name}
    assert config["log"] == f"{name}/log" and config["seed"] == 7
    assert config["tokenizer_file"] is None
    written = YAML().load(resolve_config(text))
    assert written["output_folder"] == name
    assert load_hyperpyyaml(read_config(file, {"output_folder": 42}))["log"] == "42/log"


def test_missing_and_broken_files_are_named(files):
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        read_config(files / "none.yaml")
    (files / "broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(ValueError, match="broken.yaml is not valid YAML"):
        read_config(files / "broken.yaml")
    with pytest.raises(ValueError, match="(?s)override of .*child.yaml.*duplicate key"):
        read_config(files / "child.yaml", "lr: 1\nlr: 2\n")
    (files / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="list.yaml must hold keys"):
        read_config(files / "list.yaml")
    (files / "orphan.yaml").write_text("base: gone.yaml\n")
    with pytest.raises(FileNotFoundError, match="gone.yaml"):
        read_config(files / "orphan.yaml")


def test_resolved_keys_stand_alone(files):
    text = resolve_config(read_config(files / "child.yaml"), {"layers": 7}, ["width"])
    assert load_hyperpyyaml(text) == {"width": 28}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_files_build_and_have_no_unused_key(path, tmp_path):
    (tmp_path / "etc").mkdir()
    # Read when the model is built.
    for lexicon in ("etc/an4.dic", "lexicon.txt"):
        (tmp_path / lexicon).write_text("A  AH\n")
    overrides = {"data_folder": str(tmp_path), "output_folder": str(tmp_path)}
    kind = SETTINGS[YAML().load(read_config(path)).get("task", "asr")]
    used_keys = kind.keys()
    text = read_config(path, overrides, used_keys)
    # Whatever a user leaves out, what only that has read is no mistake.
    readers = [x.split(":")[0] for x in re.split(r"\n(?=\w)", text) if "!ref" in x]
    assert "epoch_counter" in readers
    read_config(path, dict.fromkeys(readers), used_keys)
    if path.name == "joint_lm.yaml":
        # Its search wants a trained language model: tests/test_decoding.py has one.
        text = read_config(path, {**overrides, "test_search": None})
    settings = kind.read(YAML().load(resolve_references(text)))
    settings.build(text, vocab_size=300)
    assert settings.as_dict().keys() == used_keys and settings.vocab_size == 300
