"""Where model folders are found."""

import pytest

from hyperconformer.hub.folder import DEFAULT_MODEL, find_model, list_shipped_models


def test_the_shipped_model_is_found_by_name(monkeypatch, tmp_path, tiny_model):
    places = (tmp_path / "wheel", tmp_path / "clone")
    monkeypatch.setattr("hyperconformer.hub.folder.SHIPPED_FOLDERS", places)
    with pytest.raises(FileNotFoundError, match="not installed.*name a model folder"):
        find_model()
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / DEFAULT_MODEL).symlink_to(tiny_model)
    assert list_shipped_models() == [DEFAULT_MODEL]
    assert find_model() == find_model(DEFAULT_MODEL) == places[1] / DEFAULT_MODEL
