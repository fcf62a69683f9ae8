"""A trained model as a folder: settings, weights, tokenizer, and maybe word n-grams.

Loading one runs no code of the folder: settings are read by
:mod:`~hyperconformer.hub.safe_yaml`, weights are safetensors whose names and shapes
must be those of the model, and no file outside the folder is opened.
"""

import contextlib
import math
import pathlib
import re
import shutil

from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.devices import find_device
from hyperconformer.hub.safe_yaml import load_safely

CONFIG_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
NGRAM_FILE = "lm.arpa"
FILES = (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE)
# What the settings say of it.
NGRAM_SETTINGS = ("lm_weight", "word_bonus")
# Far above any settings, any SentencePiece model, and n-grams that Python should read.
MAX_BYTES = {
    CONFIG_FILE: 2**16,
    WEIGHTS_FILE: 2**35,
    TOKENIZER_FILE: 2**26,
    NGRAM_FILE: 2**24,
}
# What building a model may take: a few times its weights, and something to begin with.
BUILD_FACTOR, BUILD_BYTES, BUILD_TENSORS = 8, 2**26, 1000

# The model that comes with the package: in the repository, and in the wheel as data
# of the package.
DEFAULT_MODEL = "hyperconformer-an4"
DEFAULT_STREAMING_MODEL = "hyperconformer-an4-streaming"
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
SHIPPED_FOLDERS = (_PACKAGE / "pretrained", _PACKAGE.parent / "pretrained")

# For SpeechBrain's own interfaces, which read the same folder.
_SPEECHBRAIN = """
# For SpeechBrain's {interface}.from_hparams
encoder: !new:hyperconformer.{encoder}
  extractor: !ref <extractor>
  recognizer: !ref <recognizer>
{decoding}
tokenizer: !new:sentencepiece.SentencePieceProcessor
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
  sample_rate: !ref <sample_rate>
pretrainer: !new:hyperconformer.FolderPretrainer
  loadables:
    model: !ref <encoder>
    tokenizer: !ref <tokenizer>
  files:
    model: model.safetensors
    tokenizer: tokenizer.model
"""
_CTC = """modules:
  encoder: !ref <encoder>
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
  blank_id: 0"""
_JOINT = """decoder: !new:hyperconformer.JointSearcher
  recognizer: !ref <recognizer>
modules:
  encoder: !ref <encoder>
  decoder: !ref <decoder>"""


def save_model(folder, config_text, modules, tokenizer_file, ngram=None):
    """Write a model folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if absent.
    config_text : str
        HyperPyYAML text that builds the modules, each under its name.
    modules : dict of str to torch.nn.Module
        The trained modules. A recogniser's folder also gets what SpeechBrain's
        ``EncoderASR`` or, where there is a decoder, ``EncoderDecoderASR`` needs.
    tokenizer_file : str or pathlib.Path
        The SentencePiece model.
    ngram : dict, optional
        Word n-grams to decode with: ``arpa``, ``lm_weight`` and ``word_bonus`` of
        :class:`hyperconformer.search.ctc_beam.CTCSearcher`.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arpa = pathlib.Path(ngram["arpa"]).read_bytes() if ngram else None
    (folder / NGRAM_FILE).unlink(missing_ok=True)  # of an earlier run
    if ngram:
        (folder / NGRAM_FILE).write_bytes(arpa)
        config_text += "".join(
            f"{name}: {float(ngram[name])!r}\n" for name in NGRAM_SETTINGS
        )
    if "recognizer" in modules:
        config_text += _for_speechbrain(modules["recognizer"])
    (folder / CONFIG_FILE).write_text(config_text, encoding="utf-8")
    # Copies, as the format refuses parameters that stand under two names (tied ones).
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
    return folder


def _for_speechbrain(recognizer):
    if recognizer.decoder_head is None:
        return _SPEECHBRAIN.format(
            interface="EncoderASR", encoder="CTCEncoder", decoding=_CTC
        )
    return _SPEECHBRAIN.format(
        interface="EncoderDecoderASR", encoder="Encoder", decoding=_JOINT
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
        True lets the settings build and call anything, as SpeechBrain does: for
        folders of your own that name classes of your own. Weights are safetensors
        all the same.

    Returns
    -------
    config : dict
        The modules with their weights, in evaluation mode, the plain values among the
        settings, and ``ngram``: what :func:`save_model` was given, else empty.
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
    text = _read_settings(folder)
    if trusted:
        config = load_hyperpyyaml(text)
    else:
        with _named_errors(folder / WEIGHTS_FILE, SafetensorError):
            max_bytes, max_tensors = _budget(files[WEIGHTS_FILE])
        config = load_safely(text, folder / CONFIG_FILE, names, max_bytes, max_tensors)
    if not set(names) <= set(config):
        raise ValueError(
            f"{folder} should hold {', '.join(names)}, but holds: {', '.join(config)}"
        )
    with _named_errors(folder / WEIGHTS_FILE, SafetensorError):
        _load_weights(files[WEIGHTS_FILE], {name: config[name] for name in names})
    for name in names:
        config[name].to(device).eval()
    with _named_errors(folder / TOKENIZER_FILE, RuntimeError):
        tokenizer = SentencePieceProcessor(model_file=str(files[TOKENIZER_FILE]))
    config["ngram"] = _ngram_options(folder, config)
    return config, tokenizer


def _ngram_options(folder, config):
    if not (folder / NGRAM_FILE).is_file():
        return {}
    check_file(folder, NGRAM_FILE)
    # Under this name: what it may link to in the hub's cache has no suffix, by which
    # the search knows a text that Python reads from a file for KenLM's C++.
    options = {"arpa": folder / NGRAM_FILE}
    for name in NGRAM_SETTINGS:
        value = config.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(
                f"{folder / CONFIG_FILE}: {name} must be a number where there is a "
                f"{NGRAM_FILE}, got {value!r}"
            )
        options[name] = value
    return options


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
    return sorted(
        {
            file.parent.name
            for place in SHIPPED_FOLDERS
            for file in place.glob(f"*/{WEIGHTS_FILE}")
        }
    )


def _find_shipped(name):
    for place in SHIPPED_FOLDERS:
        if (place / name / WEIGHTS_FILE).is_file():
            return place / name
    raise FileNotFoundError(
        f"the shipped model {name} is not installed: it is neither in "
        f"{SHIPPED_FOLDERS[0]} nor in {SHIPPED_FOLDERS[1]}; name a model folder"
    )


def _fetch(name):
    """Copy a hub model's files into the hub's cache."""
    from huggingface_hub import snapshot_download

    wanted = [*FILES, NGRAM_FILE]
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


def _budget(path):
    with safe_open(path, framework="pt") as file:
        tensors = len(file.keys())
    size = path.stat().st_size
    return BUILD_FACTOR * size + BUILD_BYTES, BUILD_FACTOR * tensors + BUILD_TENSORS


def read_settings(source):
    """What the settings of a model folder say, without building anything.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`find_model`.

    Returns
    -------
    dict
        Nested as the file is; what it builds is a dict of its arguments.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If the file is damaged, or has aliases: a few of aliases are a lot of settings.
    """
    folder = find_model(source)
    text = _read_settings(folder)
    with _named_errors(folder / CONFIG_FILE, YAMLError, RecursionError):
        if any(isinstance(event, AliasEvent) for event in YAML().parse(text)):
            raise ValueError(f"{folder / CONFIG_FILE} has aliases; settings have none")
        return YAML().load(text)


def _read_settings(folder):
    path = check_file(folder, CONFIG_FILE)
    with _named_errors(folder / CONFIG_FILE, UnicodeDecodeError):
        return path.read_text(encoding="utf-8-sig")


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
    wanted = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
        if not (ignored and ignored.fullmatch(f"{name}.{key}"))
    }
    with safe_open(path, framework="pt") as file:
        found = {k for k in file.keys() if not (ignored and ignored.fullmatch(k))}
        if found != set(wanted):
            raise ValueError(
                f"{path} has other tensors than {who} ask for: "
                f"{_some(set(wanted) - found)} missing, "
                f"{_some(found - set(wanted))} not asked for"
            )
        # All are checked before the first is read.
        for key, value in wanted.items():
            shape = file.get_slice(key).get_shape()
            if list(shape) != list(value.shape):
                raise ValueError(
                    f"{path}: {key} has shape {list(shape)}, {who} ask for "
                    f"{list(value.shape)}"
                )
        for key, value in wanted.items():
            tensor = file.get_tensor(key)
            if tensor.is_floating_point() != value.is_floating_point():
                raise ValueError(
                    f"{path}: {key} is {tensor.dtype}, expected {value.dtype}"
                )
            if not tensor.isfinite().all():
                raise ValueError(f"{path}: {key} holds NaN or infinite values")
            value.copy_(tensor)


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
