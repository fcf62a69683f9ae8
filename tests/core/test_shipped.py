"""Names of shipped recipes and ablations."""

import pathlib

import pytest

from hyperconformer.config import read_config
from hyperconformer.core.shipped import (
    describe,
    find_ablation,
    find_recipe,
    list_ablations,
    list_recipes,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = {**list_recipes(), **list_ablations()}


def test_every_yaml_file_but_the_fragments_has_a_name():
    files = {
        path
        for folder in ("hparams", "recipes")
        for path in ROOT.glob(f"{folder}/**/*.yaml")
        if path.parent.name != "fragments"
    }
    assert {path.resolve() for path in SHIPPED.values()} == files
    assert len(SHIPPED) == len(list_recipes()) + len(list_ablations())


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_complete(name):
    assert "output_folder" in read_config(find_recipe(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_line_says_what_it_is(name):
    with open(SHIPPED[name], encoding="utf-8") as file:
        assert file.readline().startswith("# ")
    said = describe(SHIPPED[name])
    assert said.endswith(".") and 10 < len(said) < 87


def test_a_file_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe("lm")
    assert pathlib.Path(shipped).name == "lm.yaml"
    pathlib.Path("lm").write_text("task: language_model\n")
    assert find_recipe("lm") == "lm" != shipped
    # The reader says what is missing of a file.
    assert find_recipe("no.yaml") == "no.yaml"
    with pytest.raises(ValueError, match="unknown recipe 'heads'.*an4/hyperconformer"):
        find_recipe("heads")
    with pytest.raises(ValueError, match="unknown ablation 'joint_lm'"):
        find_ablation("joint_lm")
    assert pathlib.Path(find_ablation("tied")).name == "tied.yaml"
