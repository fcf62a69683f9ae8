"""Whether values are what annotations say."""

import math
import re
import typing
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from hyperconformer.core.annotations import check_type, described, fits


@pytest.mark.parametrize(
    "value,annotation,expected",
    [
        (3, int, True),
        (3.0, int, False),
        (True, int, False),
        (True, bool, True),
        (3, float, True),
        (math.nan, float, False),
        (False, float, False),
        (None, float | None, True),
        (None, float, False),
        ("a", typing.Optional[int], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        ([1, 2], list[int], True),
        ([1, "2"], list[int], False),
        ((1, 2), list[int], False),
        ([1], typing.Iterable, True),
        ({"a": 1}, dict[str, Any], True),
        (object(), Any, True),
        (torch.nn.GELU, Callable[[], torch.nn.Module], True),
        (torch.nn.GELU, type[torch.nn.Module], True),
        ("GELU", typing.Callable, False),
    ],
)
def test_values_and_annotations(value, annotation, expected):
    assert fits(value, annotation) is expected


@pytest.mark.parametrize(
    "annotation,words",
    [
        (int, "int"),
        (typing.Optional[float], "a finite number or None"),
        (typing.Callable, "a class or function"),
        (Literal["a"], "Literal['a']"),
        (list[int], "list[int]"),
    ],
)
def test_annotations_in_words(annotation, words):
    assert described(annotation) == words


def test_what_does_not_fit_is_named():
    check_type("seed", 3, int)
    message = "max_updates must be int or None, got 'many' (str)"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_type("max_updates", "many", int | None)
