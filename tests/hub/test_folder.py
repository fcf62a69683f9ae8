"""Where model folders are found."""

import pytest

from hyperconformer.hub.folder import DEFAULT_MODEL, find_model, list_shipped_models


def test_the_shipped_model_is_found_by_name(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr("hyperconformer.hub.folder.SHIPPED_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="not installed.*name a model folder"):
        find_model()
    (tmp_path / DEFAULT_MODEL).symlink_to(tiny_model)
    assert list_shipped_models() == [DEFAULT_MODEL]
    assert find_model() == find_model(DEFAULT_MODEL) == tmp_path / DEFAULT_MODEL
