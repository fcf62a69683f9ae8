"""Reading experiment YAML: HyperPyYAML with inheritance and strict keys.

A file may begin with ``base: OTHER.yaml`` (relative to itself, or the name of a shipped
recipe): it then says only what differs from that file, and lists after ``without:`` the
keys that it does not need. With ``base: [OTHER.yaml, CHANGES.yaml]`` each file of the
list changes those before it. A key that neither the base has nor the file itself refers
to, or that nothing reads, is an error: a misspelt hyperparameter never passes in
silence. A dotted name (``mixer_options.tied``) changes one entry of a mapping. Names of
files, folders and splits are text, also where YAML would read a number or a date.
"""

import datetime
import io
import logging
import pathlib
import re

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode
from ruamel.yaml.tag import Tag

from hyperconformer.core.messages import unknown
from hyperconformer.core.shipped import find_recipe
from hyperconformer.core.text import read_text

logger = logging.getLogger(__name__)

# Keys, at any depth, whose values are names. What YAML takes for something else but
# null, as a folder 2026-11-28, is read as it is written.
NAMES = re.compile(
    r"(.*\.)?((.*_)?(folder|files?|splits?|texts)|corpus|init_from|lexicon|arpa)"
)
TEXT, NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def read_config(path, overrides=None, used_keys=None):
    """Read a YAML file, its bases and the overrides into one HyperPyYAML text.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    overrides : str or dict, optional
        YAML text or mapping that goes on top, as SpeechBrain's
        ``parse_arguments`` returns it from the command line.
    used_keys : collection of str, optional
        The keys that the caller reads. Every other key must be referred to
        inside the file, else it would be ignored.

    Returns
    -------
    str
        Text for ``hyperpyyaml.load_hyperpyyaml``, references still in it.

    Raises
    ------
    FileNotFoundError
        If the file or a base does not exist.
    ValueError
        If it is no YAML mapping, or a key is unknown to the base or to the caller.

    Example
    -------
    >>> import tempfile
    >>> from hyperpyyaml import load_hyperpyyaml
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.yaml"
    >>> _ = file.write_text("d_model: 8\\nwidth: !ref <d_model> * 2\\n")
    >>> load_hyperpyyaml(read_config(file, {"d_model": 9}))["width"]
    18
    """
    tree = _read_tree(pathlib.Path(path))
    if used_keys is not None:
        check_keys(tree, used_keys, path)
    if isinstance(overrides, str):
        overrides = _parse(overrides, f"override of {path}")
    overrides = {
        str(key): _as_name(str(key), x) for key, x in (overrides or {}).items()
    }
    _update(tree, overrides, f"override of {path}")
    text = dump(tree)
    if used_keys is not None:
        # What an override has left without a reader is no mistake of the file's.
        read = {*used_keys, *_references(text)}
        for key in sorted({key.split(".")[0] for key in overrides} - read):
            logger.warning(f"{key} is given but not used: another override replaces it")
    return text


def resolve_config(text, overrides=None, keys=None):
    """Resolve the references of a HyperPyYAML text.

    Arguments
    ---------
    text : str
        What :func:`read_config` returned.
    overrides : dict, optional
        Last changes.
    keys : collection of str, optional
        The keys to keep; None = all.

    Returns
    -------
    str
        HyperPyYAML text that needs no other key.
    """
    tree = YAML().load(resolve_references(text, overrides))
    return dump({key: tree[key] for key in (tree if keys is None else keys)})


def check_keys(tree, used_keys, path):
    """Refuse top-level keys that nothing reads.

    Arguments
    ---------
    tree : dict
        As YAML loads it, references still in it.
    used_keys : collection of str
        Keys that the program reads.
    path : str or pathlib.Path
        The file, for the message.

    Raises
    ------
    ValueError
        Naming the key and the nearest known one.
    """
    referenced = _references(dump(tree))
    for key in tree:
        if key not in used_keys and key not in referenced:
            known = sorted(set(used_keys) | referenced)
            raise ValueError(f"{path}: {unknown('key', key, known)}")


def flatten(tree, prefix=""):
    """Nested mappings as one.

    Arguments
    ---------
    tree : dict
        As YAML loads it, references resolved.
    prefix : str
        Goes before each key.

    Returns
    -------
    dict of str to str
        Dotted keys to values as text. A mapping with a tag (``!new:``) also stands
        there itself, with its tag.

    Example
    -------
    >>> flatten(YAML().load("a: !new:b.C\\n  d: 1\\ne: text"))
    {'a': '!new:b.C', 'a.d': '1', 'e': 'text'}
    """
    flat = {}
    for key, value in tree.items():
        tag = getattr(getattr(value, "tag", None), "value", None) or ""
        if hasattr(value, "items"):
            if tag:
                flat[f"{prefix}{key}"] = tag
            flat.update(flatten(value, f"{prefix}{key}."))
        elif tag:
            flat[f"{prefix}{key}"] = f"{tag} {value.value}".strip()
        else:
            flat[f"{prefix}{key}"] = "null" if value is None else str(value)
    return flat


def dump(tree):
    """Write a tree, as ruamel.yaml loads it, as YAML text."""
    text = io.StringIO()
    YAML().dump(tree, text)
    return text.getvalue()


def _parse(text, source):
    yaml = YAML()
    try:
        node = yaml.compose(text)
        if node is None:
            return None
        _read_names_as_text(node)
        return yaml.constructor.construct_document(node)
    except YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error


def _read_names_as_text(node, is_name=False):
    if isinstance(node, MappingNode):
        for key, value in node.value:
            _read_names_as_text(value, bool(NAMES.fullmatch(str(key.value))))
    elif isinstance(node, SequenceNode):
        for value in node.value:
            _read_names_as_text(value, is_name)
    elif is_name and node.tag.startswith("tag:yaml.org,2002:") and node.tag != NULL:
        node.ctag = Tag(suffix=TEXT)


def _as_name(key, value):
    """A value of an override from Python, as text where it is a name."""
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if NAMES.fullmatch(key) and isinstance(value, (bool, int, float, datetime.date)):
        return str(value)
    return value


def _read_tree(path):
    if not path.is_file():
        raise FileNotFoundError(f"no such YAML file: {path}")
    tree = _parse(read_text(path), path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    first, *others = [base] if isinstance(base, str) else base
    parent = _read_tree(_find_base(path, first))
    for other in others:
        other = _find_base(path, other)
        _update(parent, _read_tree(other), other)
    for key in tree.pop("without", []):
        if key not in parent:
            raise ValueError(f"{path}: {unknown('key', key, sorted(parent))}")
        del parent[key]
    _update(parent, tree, path, new_keys=_references(dump(tree)))
    return parent


def _find_base(path, name):
    try:
        return pathlib.Path(find_recipe(name, path.parent))
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error


def _references(text):
    """The top-level keys that a HyperPyYAML text refers to."""
    return set(re.findall(r"<([A-Za-z_]\w*)", text))


def _update(tree, changes, source, new_keys=()):
    for key, value in changes.items():
        first, *path = str(key).split(".")
        if first not in tree and first not in new_keys:
            raise ValueError(f"{source}: {unknown('key', first, sorted(tree))}")
        if path:
            _set_entry(tree, [first, *path], value, source)
            continue
        # A plain mapping updates a mapping; a tagged one (!new:) replaces it.
        if _is_plain_mapping(value) and _is_plain_mapping(tree.get(key)) and tree[key]:
            tree[key].update(value)
        else:
            tree[key] = value


def _set_entry(tree, path, value, source):
    """Change one entry of a mapping; what it is called there, its reader checks."""
    for depth, key in enumerate(path[:-1], start=1):
        tree = tree.get(key)
        if not isinstance(tree, dict):
            raise ValueError(
                f"{source}: {'.'.join(path)}: {'.'.join(path[:depth])} holds no keys"
            )
    tree[path[-1]] = value


def _is_plain_mapping(node):
    tag = getattr(node, "tag", None)
    return isinstance(node, dict) and not (tag is not None and tag.value)
