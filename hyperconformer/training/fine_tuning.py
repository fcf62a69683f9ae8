"""Training that begins with the weights of a trained model (``init_from``)."""

import logging
import pathlib

import speechbrain as sb
from ruamel.yaml import YAML

from hyperconformer.corpora.manifest import write_atomically
from hyperconformer.model_folder import (
    TOKENIZER_FILE,
    check_file,
    find_model,
    load_weights,
    read_settings,
)

logger = logging.getLogger(__name__)


def keep_tokenizer(source, folder):
    """Copy a model's tokenizer, so that the run can go on without that model.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`hyperconformer.model_folder.find_model`; not looked for where the
        copy exists.
    folder : str or pathlib.Path
        Where the copy lies.

    Returns
    -------
    pathlib.Path
        The copy.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    """
    copy = pathlib.Path(folder) / TOKENIZER_FILE

    def keep():
        if not copy.is_file():
            file = check_file(find_model(source), TOKENIZER_FILE)
            write_atomically(copy, file.read_bytes())

    sb.utils.distributed.run_on_main(keep)
    return copy


def start_from(source, settings, extractor, recognizer):
    """Give a model the weights of another one, and its feature statistics.

    Statistics are left alone where the two normalise features in different ways. The
    other model is not built: its weights fill the modules of this one.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`hyperconformer.model_folder.find_model`.
    settings : str
        HyperPyYAML text without references that describes this run's model.
    extractor, recognizer : torch.nn.Module
        This run's; changed in place.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    ValueError
        If its sampling rate or its weights are not those of this run's model.
    """
    theirs = _flat(read_settings(source))
    ours = _flat(YAML().load(settings))
    rates = [model.get("sample_rate") for model in (theirs, ours)]
    if rates[0] != rates[1]:
        raise ValueError(
            f"init_from: {source} hears {rates[0]} Hz, this run has sample_rate: "
            f"{rates[1]}"
        )
    own_statistics = {key: x.clone() for key, x in extractor.state_dict().items()}
    load_weights(source, {"extractor": extractor, "recognizer": recognizer})
    same = "extractor.normalization"
    if theirs.get(same) != ours.get(same):
        extractor.load_state_dict(own_statistics)
    logger.info(f"beginning with the weights of {source}")
    differences = [
        f"{key} ({theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here)"
        for key in sorted(theirs.keys() | ours.keys())
        if key.split(".")[0] in ("extractor", "recognizer")
        if theirs.get(key) != ours.get(key)
    ]
    if differences:
        logger.warning(f"its settings differ: {', '.join(differences)}")


def _flat(tree, prefix=""):
    """Nested mappings as one, with dotted keys and their leaves as text."""
    flat = {}
    for key, value in tree.items():
        if hasattr(value, "items"):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
