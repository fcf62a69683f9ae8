"""A trained model as a folder: settings, weights, tokenizer, and maybe word n-grams.

Loading one runs no code of the folder: settings are the data of
:mod:`~hyperconformer.hub.config`, weights are safetensors whose names, shapes and types
must be those of the model, and no file outside the folder is opened. The model is
first built without memory, on the device ``meta``, and compared with the header of the
weights. The folder's ``hyperparams.yaml`` is for SpeechBrain's own interfaces: it is
written here and never read.
"""

import contextlib
import json
import logging
import pathlib
import re
import shutil

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.devices import find_device
from hyperconformer.core.shipped import find_folder
from hyperconformer.hub.config import (
    MODULES,
    NGRAM_SETTINGS,
    VERSION,
    MemoryBudget,
    build,
    parse_config,
)
from hyperconformer.hub.hyperparams import from_hyperpyyaml, to_hyperpyyaml

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
SPEECHBRAIN_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
# Word n-grams: as a text that Python reads, or in KenLM's binary form with its words.
NGRAM_FILE = "lm.arpa"
KENLM_FILE, WORDS_FILE = "lm.bin", "words.txt"
# What is claimed of the model, see hyperconformer.verification.
CLAIMS_FILE = "verify.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
# Far above any settings, any SentencePiece model, and n-grams that Python should read.
MAX_BYTES = {
    CONFIG_FILE: 2**16,
    SPEECHBRAIN_FILE: 2**16,
    WEIGHTS_FILE: 2**35,
    TOKENIZER_FILE: 2**26,
    NGRAM_FILE: 2**24,
    KENLM_FILE: 2**30,
    WORDS_FILE: 2**24,
}
# The types of a safetensors file that a model may have.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What building a model may take: a few times its weights, and something to begin with.
BUILD_FACTOR, BUILD_BYTES, BUILD_TENSORS = 8, 2**26, 1000

_ROWS = re.compile(r"\[\n([^\[\]{}]*)\]")

# The models that come with the package.
DEFAULT_MODEL = "hyperconformer-librispeech"
DEFAULT_STREAMING_MODEL = "hyperconformer-librispeech-streaming"
SHIPPED_FOLDER = find_folder("pretrained")


def save_model(folder, config_text, modules, tokenizer_file, ngram=None):
    """Write a model folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if absent.
    config_text : str
        HyperPyYAML text without references that builds the modules, each under its
        name.
    modules : dict of str to torch.nn.Module
        The trained modules. A recogniser's folder also gets what SpeechBrain's
        ``EncoderASR`` or, where there is a decoder, ``EncoderDecoderASR`` needs.
    tokenizer_file : str or pathlib.Path
        The SentencePiece model.
    ngram : dict, optional
        Word n-grams to decode with: ``arpa``, ``lm_weight`` and ``word_bonus`` of
        :class:`hyperconformer.search.ctc_beam.CTCSearcher`, or these and ``words`` of
        :class:`hyperconformer.search.lexicon.LexiconSearcher`.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    ValueError
        If the text holds what is no data, such as ``!apply:``.
    """
    folder = pathlib.Path(folder)
    config = {
        "version": VERSION,
        "tokenizer": "sentencepiece",
        **from_hyperpyyaml(config_text, source=f"the settings of {folder}"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if not ngram:
        files = {}
    elif "words" in ngram:
        files = {KENLM_FILE: ngram["arpa"], WORDS_FILE: ngram["words"]}
    else:
        files = {NGRAM_FILE: ngram["arpa"]}
    # The sources may be those of an earlier run, which go.
    contents = {name: pathlib.Path(path).read_bytes() for name, path in files.items()}
    for name in (NGRAM_FILE, KENLM_FILE, WORDS_FILE):
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    if ngram:
        config["ngram"] = {name: float(ngram[name]) for name in NGRAM_SETTINGS}
    write_settings(folder, config, modules)
    # Copies, as the format refuses parameters that stand under two names (tied ones).
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
    return folder


def write_settings(folder, config, modules):
    """Write the settings of a model folder, for this package and for SpeechBrain.

    Arguments
    ---------
    folder : pathlib.Path
        The folder.
    config : dict
        The settings, as :func:`read_settings` returns them.
    modules : dict of str to torch.nn.Module
        What they describe.

    Raises
    ------
    ValueError
        If they are no settings of a model.
    """
    text = json.dumps(config, indent=2) + "\n"
    # Lists of plain values in one line.
    text = _ROWS.sub(lambda row: f"[{' '.join(row[1].split())}]", text)
    parse_config(text, folder / CONFIG_FILE, trusted=True)
    has_decoder = None
    if "recognizer" in modules:
        has_decoder = modules["recognizer"].decoder_head is not None
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    (folder / SPEECHBRAIN_FILE).write_text(
        to_hyperpyyaml(config, has_decoder), encoding="utf-8"
    )


def load_model(source, names, device="cpu", trusted=False):
    """Read a model folder.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`find_model`.
    names : collection of str
        The modules that it should hold.
    device : str or torch.device
        Where to compute.
    trusted : bool
        True lets the settings build any class that Python can import: for folders of
        your own that name classes of your own. Weights are safetensors all the same.

    Returns
    -------
    config : dict
        The modules with their weights, in evaluation mode, ``sample_rate`` where the
        settings have one, and ``ngram``: what :func:`save_model` was given, else empty.
    tokenizer : sentencepiece.SentencePieceProcessor

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If it is the folder of another kind of model, its files are damaged or do
        not belong together, it asks for what a model does not need, or there is no
        such device.
    """
    device = find_device(device)
    folder = find_model(source)
    files = {name: check_file(folder, name) for name in FILES}
    settings = _read_settings(folder, trusted)
    found = [name for name in MODULES if name in settings]
    if not set(names) <= set(found):
        raise ValueError(
            f"{folder} should hold {', '.join(names)}, but holds: "
            f"{', '.join(found) or 'none'}"
        )
    weights, source = files[WEIGHTS_FILE], folder / CONFIG_FILE
    if not trusted:
        with _named_errors(folder / WEIGHTS_FILE, SafetensorError):
            header = _read_header(weights)
        with _budget(weights, header), torch.device("meta"):
            modules = build(settings, names, source)
        _compare(header, _state(modules), weights)
    modules = build(settings, names, source, trusted)
    with _named_errors(folder / WEIGHTS_FILE, SafetensorError):
        _load_weights(weights, modules)
    for module in modules.values():
        module.to(device).eval()
    with _named_errors(folder / TOKENIZER_FILE, RuntimeError):
        tokenizer = SentencePieceProcessor(model_file=str(files[TOKENIZER_FILE]))
    config = {key: settings[key] for key in ("sample_rate",) if key in settings}
    ngram = _ngram_options(folder, settings, trusted)
    return {**config, **modules, "ngram": ngram}, tokenizer


def _ngram_options(folder, settings, trusted):
    names = [
        name
        for name in (NGRAM_FILE, KENLM_FILE, WORDS_FILE)
        if (folder / name).is_file()
    ]
    if not names:
        return {}
    for name in names:
        check_file(folder, name)
    if names not in ([NGRAM_FILE], [KENLM_FILE, WORDS_FILE]):
        raise ValueError(
            f"{folder} holds {', '.join(names)}: word n-grams are either {NGRAM_FILE}, "
            f"or {KENLM_FILE} and {WORDS_FILE}"
        )
    if "ngram" not in settings:
        raise ValueError(
            f"{folder / CONFIG_FILE} lacks ngram, with {' and '.join(NGRAM_SETTINGS)}, "
            f"where there is a {names[0]}"
        )
    # Under this name: what it may link to in the hub's cache has no suffix, by which
    # the search knows a text that Python reads from a file for KenLM's C++.
    options = {"arpa": folder / names[0], **settings["ngram"]}
    if names == [NGRAM_FILE]:
        return options
    # KenLM maps its binary form into memory and believes what it holds.
    if not trusted and folder.resolve().parent != SHIPPED_FOLDER:
        logger.warning(
            f"{folder / KENLM_FILE} is not used: KenLM does not check such a file. If "
            "you trust who made it, say so with --trusted (trusted=True)"
        )
        return {}
    return {**options, "words": folder / WORDS_FILE}


def find_model(source=None):
    """The model folder behind what a user names.

    Arguments
    ---------
    source : str or pathlib.Path, optional
        A model folder, the output folder of a training run that holds one, the name
        of a shipped model, or ``owner/name`` of a model on the Hugging Face hub, of
        which only those files are fetched. None = the shipped default model.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        Naming what is missing.
    ValueError
        If its folder ``model`` is a link that leads out of it.
    """
    if source is None or str(source) in list_shipped_models():
        return _find_shipped(source or DEFAULT_MODEL)
    folder = pathlib.Path(source)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
            raise FileNotFoundError(f"no such model folder: {source}")
        folder = _fetch(str(source))
    outer = None
    if not (folder / WEIGHTS_FILE).is_file():
        outer, folder = folder, folder / "model"
    for name in FILES:
        if not (folder / name).is_file():
            if name == CONFIG_FILE and (folder / SPEECHBRAIN_FILE).is_file():
                raise FileNotFoundError(
                    f"{folder} lacks {CONFIG_FILE}: it was saved by version 0.2 or "
                    f"before. Add the file by: python -m hyperconformer.hub.upgrade "
                    f"{folder}"
                )
            raise FileNotFoundError(
                f"{source} is no model folder: it lacks {name}, also in its folder "
                "`model`, where a finished training run leaves it"
            )
    if outer is not None and outer.resolve() not in folder.resolve().parents:
        raise ValueError(f"{folder} leads out of its folder, to {folder.resolve()}")
    return folder


def list_shipped_models():
    """The names of the models that came with the package, sorted.

    Returns
    -------
    list of str
    """
    return sorted(file.parent.name for file in SHIPPED_FOLDER.glob(f"*/{WEIGHTS_FILE}"))


def _find_shipped(name):
    folder = SHIPPED_FOLDER / name
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(
            f"the shipped model {name} is not installed: it is not in "
            f"{SHIPPED_FOLDER}; name a model folder"
        )
    return folder


def _fetch(name):
    """Copy a hub model's files into the hub's cache."""
    from huggingface_hub import snapshot_download

    wanted = [*FILES, NGRAM_FILE, KENLM_FILE, WORDS_FILE, CLAIMS_FILE]
    try:
        return pathlib.Path(snapshot_download(name, allow_patterns=wanted))
    # The hub's errors share no base class, and "not there" is one of many.
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"no such model folder: {name}, and it cannot be had from the hub: {first}"
        ) from error


def check_file(folder, name):
    """The real path of a file of a model folder.

    Arguments
    ---------
    folder : pathlib.Path
        What :func:`find_model` returned.
    name : str
        The file.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ValueError
        If it leads out of the folder, is empty or far too large.
    """
    real, path = folder.resolve(), (folder / name).resolve()
    if real not in path.parents and path.parent != _blobs(real):
        raise ValueError(f"{folder / name} leads out of its folder, to {path}")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES[name]:
        raise ValueError(
            f"{folder / name} has {size} bytes; 1 to {MAX_BYTES[name]} are expected"
        )
    return path


def _blobs(folder):
    """Where the hub's cache keeps what the files of a snapshot link to, else None.

    The folder of a model in the cache is ``models--OWNER--NAME/snapshots/REVISION``.
    """
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def _budget(path, header):
    size = path.stat().st_size
    return MemoryBudget(
        BUILD_FACTOR * size + BUILD_BYTES, BUILD_FACTOR * len(header) + BUILD_TENSORS
    )


def read_settings(source):
    """What the settings of a model folder say, without building anything.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`find_model`.

    Returns
    -------
    dict
        Nested as :mod:`~hyperconformer.hub.config` describes it.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If the file is damaged, or no settings of a model.
    """
    # They are not built, so that no size of theirs can hurt.
    return _read_settings(find_model(source), trusted=True)


def _read_settings(folder, trusted):
    path = check_file(folder, CONFIG_FILE)
    with _named_errors(folder / CONFIG_FILE, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8-sig")
    return parse_config(text, folder / CONFIG_FILE, trusted)


def load_weights(source, modules, ignored=None):
    """Fill modules of one's own with the weights of a model folder.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`find_model`.
    modules : dict of str to torch.nn.Module
        The modules that it holds, under its names; changed in place.
    ignored : re.Pattern, optional
        The weights whose names match in full are left alone, here and there.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If the file is damaged, or its weights are not those of these modules.
    """
    folder = find_model(source)
    path = check_file(folder, WEIGHTS_FILE)
    with _named_errors(folder / WEIGHTS_FILE, SafetensorError):
        _load_weights(path, modules, "the settings of this run", ignored)


def _load_weights(path, modules, who="its settings", ignored=None):
    """Fill the modules from a file that holds exactly their tensors."""
    wanted = _state(modules, ignored)
    _compare(_read_header(path, ignored), wanted, path, who)
    with safe_open(path, framework="pt") as file:
        for key, value in wanted.items():
            tensor = file.get_tensor(key)
            if not tensor.isfinite().all():
                raise ValueError(f"{path}: {key} holds NaN or infinite values")
            value.copy_(tensor)


def _state(modules, ignored=None):
    """The tensors of modules, under the names of the file."""
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
        if not (ignored and ignored.fullmatch(f"{name}.{key}"))
    }


def _read_header(path, ignored=None):
    """Shape and type of each tensor of a file; no tensor is read."""
    with safe_open(path, framework="pt") as file:
        return {
            key: (file.get_slice(key).get_shape(), file.get_slice(key).get_dtype())
            for key in file.keys()
            if not (ignored and ignored.fullmatch(key))
        }


def _compare(header, wanted, path, who="its settings"):
    """Refuse a file whose header is not that of a model's tensors."""
    if set(header) != set(wanted):
        raise ValueError(
            f"{path} has other tensors than {who} ask for: "
            f"{_some(set(wanted) - set(header))} missing, "
            f"{_some(set(header) - set(wanted))} not asked for"
        )
    for key, value in wanted.items():
        shape, dtype = header[key]
        if list(shape) != list(value.shape):
            raise ValueError(
                f"{path}: {key} has shape {list(shape)}, {who} ask for "
                f"{list(value.shape)}"
            )
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {key} is {dtype}; known: {', '.join(DTYPES)}")
        if DTYPES[dtype].is_floating_point != value.is_floating_point():
            raise ValueError(
                f"{path}: {key} is {DTYPES[dtype]}, expected {value.dtype}"
            )


def _some(names):
    shown = ", ".join(sorted(names)[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextlib.contextmanager
def _named_errors(path, *kinds):
    """Turn a library's errors into one that names the file."""
    try:
        yield
    except kinds as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged: {first}") from error
