"""Whether a value is what a type annotation says, for settings that people write."""

import collections.abc
import math
import numbers
import types
import typing
from typing import Any

from hyperconformer.core.messages import quoted

_UNIONS = (typing.Union, getattr(types, "UnionType", None))


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value of another type than an annotation says.

    Arguments
    ---------
    name : str
        What the value is for, for the message.
    value : object
        The value.
    annotation : type
        From ``typing.get_type_hints``.

    Raises
    ------
    ValueError
        If the value does not fit.

    Example
    -------
    >>> check_type("seed", 3, int)
    >>> check_type("max_updates", "many", int | None)
    Traceback (most recent call last):
    ...
    ValueError: max_updates must be int or None, got 'many' (str)
    """
    if not fits(value, annotation):
        raise ValueError(
            f"{name} must be {described(annotation)}, got {quoted(value)} "
            f"({type(value).__name__})"
        )


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is what an annotation says.

    Arguments
    ---------
    value : object
        The value.
    annotation : type or typing construct
        As :func:`typing.get_type_hints` returns it.

    Returns
    -------
    bool
        True also where the annotation is of a kind that is not checked.

    Example
    -------
    >>> fits(3, int | None), fits(True, int), fits([1, "a"], list[int])
    (True, False, False)
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        return any(fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list and isinstance(value, list):
        return all(fits(one, arguments[0]) for one in value)
    annotation = annotation if origin is None else origin
    if annotation is collections.abc.Callable:
        return callable(value)
    # Any is a class since Python 3.11.
    if annotation is Any or not isinstance(annotation, type):
        return True
    # A bool is an int to Python, but no number to a reader.
    if annotation in (int, float) and isinstance(value, bool):
        return False
    if annotation is int:
        return isinstance(value, numbers.Integral)
    if annotation is float:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    return isinstance(value, annotation)


def described(annotation: Any) -> str:
    """An annotation in words.

    Arguments
    ---------
    annotation : type or typing construct
        As :func:`typing.get_type_hints` returns it.

    Returns
    -------
    str

    Example
    -------
    >>> described(float | None)
    'a finite number or None'
    """
    origin = typing.get_origin(annotation)
    if annotation is float:
        return "a finite number"
    if annotation is type(None):
        return "None"
    if collections.abc.Callable in (annotation, origin):
        return "a class or function"
    if origin in _UNIONS:
        return " or ".join(map(described, typing.get_args(annotation)))
    plain = isinstance(annotation, type) and origin is None
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")
