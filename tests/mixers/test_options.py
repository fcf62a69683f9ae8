"""Options in a dataclass: one place for their names, types and defaults."""

import inspect
from dataclasses import dataclass, fields
from typing import Any

import pytest

from hyperconformer.mixers.base import TokenMixer
from hyperconformer.mixers.hyperglu import HyperGLUMixer, HyperGLUOptions
from hyperconformer.mixers.registry import (
    build_mixer,
    list_mixers,
    mixer_class,
    mixer_options,
)


class Gain(TokenMixer):
    @dataclass(kw_only=True)
    class Options:
        gain: float = 0.5
        limit: int | None = None

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        self.options = self.Options(**given)


class Louder(Gain):
    """Another constructor than that of its options."""

    def __init__(self, d_model: int, num_heads: int, *, decibel: float = 6.0):
        super().__init__(d_model, num_heads, gain=decibel)


def test_a_constructor_shows_its_options():
    shown = "(d_model: int, num_heads: int, *, gain: float = 0.5, limit: int | None"
    assert str(inspect.signature(Gain)).startswith(shown)
    assert mixer_options(Gain)["gain"].default == 0.5
    assert list(mixer_options(Louder)) == ["decibel"]
    assert Gain(4, 1, limit=3).options == Gain.Options(limit=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gian'"):
        Gain(4, 1, gian=3)


def test_the_registry_reads_them():
    assert build_mixer(Gain, d_model=4, num_heads=1, gain=2).options.gain == 2
    with pytest.raises(ValueError, match="'limit' of mixer 'Gain' must be int or None"):
        build_mixer(Gain, d_model=4, num_heads=1, limit=[3])
    with pytest.raises(ValueError, match="'gian'; did you mean 'gain'"):
        build_mixer(Gain, d_model=4, num_heads=1, gian=3)
    assert build_mixer(Louder, d_model=4, num_heads=1, decibel=3).options.gain == 3


@pytest.mark.parametrize("name", list_mixers())
def test_every_mixer_of_ours_declares_its_options(name):
    cls = mixer_class(name)
    if cls.__module__.startswith("hyperconformer."):
        assert list(mixer_options(name)) == [x.name for x in fields(cls.Options)]


def test_every_shared_option_of_hyperglu_reaches_its_layer():
    other = {"int": 3, "bool": True, "float": 7.0}
    given = {
        field.name: not field.default
        if field.type is bool
        else other.get(getattr(field.type, "__name__", ""), field.default)
        for field in fields(HyperGLUOptions)
    }
    given.update(attn_norm="l2", gate_act="none", qk_rank=8, vo_rank=6, backend="torch")
    layer = HyperGLUMixer(16, 2, **given, chunk_frames=5).layer
    assert {name: getattr(layer.cfg, name) for name in given} == given
    assert layer.cfg.chunk_T == 5
    changed = [x.name for x in fields(HyperGLUOptions) if given[x.name] != x.default]
    assert len(changed) == len(fields(HyperGLUOptions)) - 1  # all but the layout
