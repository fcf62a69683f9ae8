"""Corpora: a raw folder in, manifests out.

Every corpus is one file with one function, ``prepare(data_folder, manifest_folder,
**options)``, which writes one SpeechBrain CSV manifest per split and returns their
paths. :func:`prepare` finds that function by the name of the corpus.

The corpora ``csv`` and ``jsonl`` read your own speech from CSV or JSON Lines manifests.
For any other layout, write such a function in your own file, as ``my_corpora.py``::

    from hyperconformer.corpora.manifest import Checks, Utterance, prepare_split

    def prepare(data_folder, manifest_folder, min_duration_s=0.1):
        utterances = [Utterance(id, speaker, audio, text) for ... in data_folder]
        path = prepare_split(
            "my_corpus", "train", utterances, data_folder, manifest_folder,
            Checks(min_duration_s),
        )
        return {"train": path}

A YAML file names it as ``corpus: !name:my_corpora.prepare``. In Python,
:func:`register_corpus` registers it under a name.
"""

import importlib
import inspect
import pathlib
from typing import Callable, Union

from hyperpyyaml import load_hyperpyyaml

__all__ = ["list_corpora", "load_corpus", "prepare", "register_corpus"]

# Built-in corpora are imported on first use.
_CORPORA: dict[str, Union[str, Callable]] = {
    "an4": "hyperconformer.corpora.an4",
    "an4_synthetic": "hyperconformer.corpora.an4_synthetic",
    "csv": "hyperconformer.corpora.csv_manifests",
    "jsonl": "hyperconformer.corpora.jsonl_manifests",
    "librispeech": "hyperconformer.corpora.librispeech",
    "shards": "hyperconformer.corpora.shards",
    "spoken": "hyperconformer.corpora.spoken",
}


def list_corpora() -> list[str]:
    """List the names of the registered corpora.

    Returns
    -------
    list of str
        The names in alphabetical order.
    """
    return sorted(_CORPORA)


def register_corpus(name: str) -> Callable:
    """Register the decorated preparation function, for :func:`prepare`.

    Arguments
    ---------
    name : str
        The name of the corpus in YAML.

    Returns
    -------
    callable
        The decorator; it returns the function unchanged.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if name in _CORPORA:
        raise ValueError(f"a corpus named {name!r} is registered already")

    def register(function):
        _CORPORA[name] = function
        return function

    return register


def load_corpus(text: str) -> Union[str, Callable]:
    """Read the corpus from a YAML text.

    Arguments
    ---------
    text : str
        HyperPyYAML with the key ``corpus``.

    Returns
    -------
    str or callable
        The name of a corpus, or the function after ``!name:``; for :func:`prepare`.

    Raises
    ------
    ValueError
        If there is no such function.

    Example
    -------
    >>> load_corpus("corpus: an4")
    'an4'
    >>> load_corpus("corpus: !name:hyperconformer.corpora.an4.prepare").__module__
    'hyperconformer.corpora.an4'
    """
    try:
        return load_hyperpyyaml(text)["corpus"]
    except ImportError as error:
        raise ValueError(
            f"no such function: {text.strip()}; for !name:my_corpora.prepare, "
            "my_corpora.py must lie in the working folder or on PYTHONPATH"
        ) from error


def prepare(
    corpus: Union[str, Callable], data_folder, manifest_folder, **options
) -> dict[str, pathlib.Path]:
    """Write the manifests of a corpus, or reuse those that are still valid.

    Arguments
    ---------
    corpus : str or callable
        One of :func:`list_corpora`, or a preparation function.
    data_folder : str or pathlib.Path
        The raw corpus, in the layout that its authors publish.
    manifest_folder : str or pathlib.Path
        Where the manifests go; made if absent.
    **options
        Options of the corpus's ``prepare``.

    Returns
    -------
    dict of str to pathlib.Path
        The CSV manifest of each split.

    Raises
    ------
    ValueError
        If the corpus or an option is unknown, or if a split is left empty.
    FileNotFoundError
        If the data folder or a required file is missing.

    Example
    -------
    >>> prepare("an4", "no/such/folder", "manifests")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    FileNotFoundError: no/such/folder does not exist.
    Expected: the folder of the AN4 repository, ...
    """
    function = _find(corpus)
    name = corpus if isinstance(corpus, str) else getattr(corpus, "__name__", corpus)
    known = list(inspect.signature(function).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"unknown option of the corpus {name!r}: {', '.join(unknown)}; "
            f"known options: {', '.join(known) or 'none'}"
        )
    manifests = function(data_folder, manifest_folder, **options)
    if not isinstance(manifests, dict) or not manifests:
        raise ValueError(
            f"the corpus {name!r} should return a dict of split to manifest, got "
            f"{manifests!r}"
        )
    return manifests


def _find(corpus):
    """Return the preparation function of a corpus."""
    if callable(corpus):
        return corpus
    if corpus not in _CORPORA:
        raise ValueError(
            f"unknown corpus {corpus!r}; known corpora: {', '.join(list_corpora())}. "
            "Name your own function with !name:, as in "
            "--corpus='!name:my_corpora.prepare'"
        )
    entry = _CORPORA[corpus]
    if isinstance(entry, str):
        return importlib.import_module(entry).prepare
    return entry
