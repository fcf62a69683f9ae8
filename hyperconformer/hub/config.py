"""``config.json``: a model as data, read strictly and built from a table of classes.

The file of a recogniser, shortened::

    {
      "version": 1,
      "tokenizer": "sentencepiece",
      "sample_rate": 16000,
      "extractor": {"class": "FeatureExtractor", "features": {"class": "Fbank", ...}},
      "recognizer": {
        "class": "Recognizer",
        "transformer": {
          "class": "HyperConformerASR",
          "activation": {"constructor": "GELU"},
          ...
        },
        ...
      },
      "ngram": {"lm_weight": 0.4, "word_bonus": 0.5}
    }

A language model has ``language_model`` in place of the last four. ``class`` builds an
object; the other entries are the arguments of its constructor. ``constructor`` hands
over a class that the model calls itself; the other entries are bound as its keyword
arguments. The signatures of the classes say which arguments there are, and of which
types.
"""

import functools
import importlib
import inspect
import itertools
import json
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Collection
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hyperconformer.core.annotations import described, fits
from hyperconformer.core.messages import quoted, unknown

VERSION = 1
CLASS, CONSTRUCTOR = "class", "constructor"
# What `class` may build.
CLASSES = {
    name: f"hyperconformer.{name}"
    for name in (
        "ConvolutionFrontEnd",
        "FeatureExtractor",
        "HyperConformerASR",
        "LinearAttentionTransformerLM",
        "Recognizer",
        "Transducer",
        "TransformerLM",
    )
} | {"Fbank": "speechbrain.lobes.features.Fbank"}
# What `constructor` may hand over.
CONSTRUCTORS = {
    name: f"torch.nn.{name}"
    for name in ("ELU", "GELU", "Identity", "LeakyReLU", "ReLU", "SiLU", "Tanh")
} | {"Swish": "speechbrain.nnet.activations.Swish"}
TABLES = {CLASS: CLASSES, CONSTRUCTOR: CONSTRUCTORS}

MODULES = ("extractor", "recognizer", "language_model")
# What a search takes beside the n-grams of the folder.
NGRAM_SETTINGS = ("lm_weight", "word_bonus")
# The keys of the file.
FIELDS = {
    "version": int,
    "tokenizer": typing.Literal["sentencepiece"],
    "sample_rate": int,
    **dict.fromkeys(MODULES, dict),
    "ngram": dict,
}
REQUIRED = ("version", "tokenizer")

MAX_DEPTH = 32
# No size of a model is larger, so that two of them multiplied still fit in memory.
MAX_NUMBER = 16384
LARGER = {
    "sample_rate": 384000,
    "num_tokens": 65536,
    "tgt_vocab": 65536,
    "vocab": 65536,
    "vocab_size": 65536,
}

_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def parse_config(
    text: str, source: str | pathlib.Path, trusted: bool = False
) -> dict[str, Any]:
    """Read the text of a ``config.json``.

    Arguments
    ---------
    text : str
        The text.
    source : str or pathlib.Path
        Where it is from, for messages.
    trusted : bool
        True leaves the size of numbers to the classes.

    Returns
    -------
    dict
        Nested as the file is. Whether it names known classes and their arguments,
        :func:`build` says.

    Raises
    ------
    ValueError
        If it is no strict JSON, or lacks a key, or has another key or value than
        this version knows. The message names the source and the key.

    Example
    -------
    >>> text = '{"version": 1, "tokenizer": "sentencepiece", "language_model": {}}'
    >>> parse_config(text, "config.json")["language_model"]
    {}
    >>> parse_config(text.replace("1", "2"), "config.json")
    Traceback (most recent call last):
        ...
    ValueError: config.json: version: this is version 2 of the format, and only \
version 1 can be read: a newer hyperconformer is needed
    """
    # Before parsing, which recurses.
    depths = itertools.accumulate(_BRACKETS.get(character, 0) for character in text)
    if max(depths, default=0) > MAX_DEPTH:
        raise ValueError(f"{source} is more than {MAX_DEPTH} levels deep")
    try:
        config = json.loads(text, object_pairs_hook=_pairs)
    except RecursionError as error:  # brackets that a text hides
        raise ValueError(f"{source} is more than {MAX_DEPTH} levels deep") from error
    except json.JSONDecodeError as error:
        # Not the error itself, which holds the file.
        raise ValueError(
            f"{source}, line {error.lineno}: not valid JSON: {error.msg}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{source} must hold keys and values, got {quoted(config)}")
    _check_numbers(config, "", source, sys.float_info.max if trusted else MAX_NUMBER)
    _check_fields(config, FIELDS, REQUIRED, "", source)
    if config["version"] != VERSION:
        raise ValueError(
            f"{source}: version: this is version {config['version']} of the format, "
            f"and only version {VERSION} can be read: a newer hyperconformer is needed"
        )
    if "ngram" in config:
        wanted = dict.fromkeys(NGRAM_SETTINGS, float)
        _check_fields(config["ngram"], wanted, wanted, "ngram.", source)
    return config


def _pairs(pairs):
    """A JSON object whose keys differ."""
    tree = {}
    for key, value in pairs:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{quoted(key)} cannot be a key")
        if key in tree:
            raise ValueError(f"the key {key!r} stands twice")
        tree[key] = value
    return tree


def _check_numbers(tree, path, source, limit):
    """Refuse numbers beyond any model's, infinity and NaN."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        place = f"{path}[{key}]" if isinstance(tree, list) else f"{path}.{key}"
        place = place.removeprefix(".")
        if isinstance(value, (dict, list)):
            _check_numbers(value, place, source, limit)
        elif isinstance(value, (int, float)):
            most = max(limit, LARGER.get(key, 0))
            if not abs(value) <= most:
                raise ValueError(
                    f"{source}: {place}: numbers go from -{most} to {most}, got "
                    f"{quoted(value)}"
                )


def _check_fields(tree, fields, required, prefix, source):
    for key, value in tree.items():
        if key not in fields:
            raise ValueError(f"{source}: {prefix}{unknown('key', key, list(fields))}")
        if not fits(value, fields[key]):
            raise ValueError(
                f"{source}: {prefix}{key} must be {described(fields[key])}, got "
                f"{quoted(value)}"
            )
    missing = [key for key in required if key not in tree]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(prefix + key for key in missing)}")


def build(
    config: dict[str, Any],
    names: Collection[str],
    source: str | pathlib.Path,
    trusted: bool = False,
) -> dict[str, nn.Module]:
    """Build the modules that a ``config.json`` describes.

    Arguments
    ---------
    config : dict
        From :func:`parse_config`.
    names : collection of str
        The keys of the modules.
    source : str or pathlib.Path
        Where it is from, for messages.
    trusted : bool
        True builds and hands over any class that Python can import, under its dotted
        name, and not only those of the tables.

    Returns
    -------
    dict of str to torch.nn.Module
        With random weights.

    Raises
    ------
    ValueError
        If a class or argument is unknown, or a value is none that the class takes.
        The message names the source and the key.

    Example
    -------
    >>> head = {"class": "Transducer", "d_model": 8, "vocab_size": 5, "width": 4}
    >>> type(build({"head": head}, ["head"], "a.json")["head"]).__name__
    'Transducer'
    >>> build({"head": {**head, "widht": 4}}, ["head"], "a.json")
    Traceback (most recent call last):
        ...
    ValueError: a.json: head: unknown argument of Transducer 'widht'; did you mean \
'width'? known: d_model, vocab_size, width
    """
    builder = _Builder(source, trusted)
    return {name: builder.module(config[name], name) for name in names}


class _Builder:
    """Turns the values of a file into objects."""

    def __init__(self, source, trusted):
        self.source, self.trusted = source, trusted

    def _fail(self, path, message) -> NoReturn:
        raise ValueError(f"{self.source}: {path}: {message}")

    def module(self, value, path):
        if CLASS not in value:
            self._fail(path, f"must be an object with the key {CLASS!r}")
        module = self._build(value, path)
        if not isinstance(module, nn.Module):
            self._fail(path, f"must be a torch.nn.Module, got {quoted(value[CLASS])}")
        return module

    def _build(self, value, path):
        if isinstance(value, list):
            return [self._build(x, f"{path}[{i}]") for i, x in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if CLASS in value:
            return self._call(*self._resolve(CLASS, value, path), path)
        if CONSTRUCTOR in value:
            found, arguments = self._resolve(CONSTRUCTOR, value, path)
            return functools.partial(found, **arguments) if arguments else found
        return {key: self._build(x, f"{path}.{key}") for key, x in value.items()}

    def _resolve(self, kind, value, path):
        """What a name stands for, and the arguments beside it."""
        name, table = value[kind], TABLES[kind]
        given = {key: x for key, x in value.items() if key != kind}
        if isinstance(name, str) and name in table:
            found = locate(table[name])
            # The names first: what they hold may take long to build.
            known = parameters(found)
            for key in given:
                if key not in known:
                    message = unknown(f"argument of {name}", key, sorted(known))
                    self._fail(path, message)
        elif self.trusted and isinstance(name, str) and "." in name:
            try:
                found, known = locate(name), None
            except (ImportError, AttributeError) as error:
                self._fail(f"{path}.{kind}", f"cannot import {name!r}: {error}")
        else:
            self._fail(f"{path}.{kind}", unknown("class", name, sorted(table)))
        arguments = {key: self._build(x, f"{path}.{key}") for key, x in given.items()}
        if known is not None:
            self._check(name, arguments, known, path, whole=kind == CLASS)
        return found, arguments

    def _check(self, name, arguments, known, path, whole):
        for key, value in arguments.items():
            default, annotation = known[key]
            if value is not default and not fits(value, annotation):
                self._fail(
                    f"{path}.{key}",
                    f"must be {described(annotation)}, got {quoted(value)}",
                )
        missing = [
            key
            for key, (default, _) in known.items()
            if default is inspect.Parameter.empty and key not in arguments
        ]
        if missing and whole:
            self._fail(path, f"{name} needs {', '.join(missing)}")

    def _call(self, cls, arguments, path):
        try:
            return cls(**arguments)
        # Whatever wrong settings provoke in a constructor, it is the file's fault.
        except Exception as error:
            self._fail(
                path, f"{cls.__name__} cannot be built: {type(error).__name__}: {error}"
            )


def locate(name: str) -> Any:
    """What a dotted name stands for.

    Arguments
    ---------
    name : str
        Module and attribute.

    Returns
    -------
    object

    Raises
    ------
    ImportError, AttributeError
        If there is no such thing.
    """
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def parameters(cls: type) -> dict[str, tuple[Any, Any]]:
    """The arguments of a constructor, through ``**kwargs`` to those of its base class.

    Arguments
    ---------
    cls : type
        The class.

    Returns
    -------
    dict
        Name to default, ``inspect.Parameter.empty`` where there is none, and type:
        where it is not annotated, what the default suggests.

    Example
    -------
    >>> from hyperconformer import ConvolutionFrontEnd
    >>> known = parameters(ConvolutionFrontEnd)
    >>> known["causal"], known["num_blocks"]
    ((False, <class 'bool'>), (3, <class 'int'>))
    """
    found: dict[str, tuple[Any, Any]] = {}
    for base in inspect.getmro(cls):
        constructor: Callable[..., None] | None = vars(base).get("__init__")
        if constructor is None:
            continue
        _, *own = inspect.signature(constructor).parameters.values()
        hints = typing.get_type_hints(constructor)
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for one in own:
            if one.kind not in variable:
                annotation = hints.get(one.name, _suggested(one.default))
                found.setdefault(one.name, (one.default, annotation))
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own):
            break
    return found


def _suggested(default):
    if isinstance(default, (bool, str)):
        return type(default) | None
    if isinstance(default, (int, float)):
        return float | None
    if inspect.isclass(default) and default is not inspect.Parameter.empty:
        return Callable
    return Any


class MemoryBudget(TorchDispatchMode):
    """Refuses tensors past a sum of bytes, before their memory is touched.

    Arguments
    ---------
    max_bytes : int
        Memory that all new tensors may take together.
    max_tensors : int
        How many they may be, which bounds the number of layers.
    """

    def __init__(self, max_bytes: int, max_tensors: int):
        super().__init__()
        self.max_bytes, self.max_tensors = max_bytes, max_tensors
        self.bytes = self.tensors = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "device" in kwargs and not any(isinstance(a, torch.Tensor) for a in args):
            # A new tensor: its size is asked where nothing is allocated, also of one
            # that a constructor puts on the CPU by name.
            self._spend(func(*args, **{**kwargs, "device": torch.device("meta")}))
        return func(*args, **kwargs)

    def _spend(self, tensor):
        self.bytes += tensor.numel() * tensor.element_size()
        self.tensors += 1
        if self.bytes > self.max_bytes or self.tensors > self.max_tensors:
            raise ValueError(
                "the model would be far larger than its weights: more than "
                f"{self.max_bytes} bytes or {self.max_tensors} tensors"
            )
