"""SpeechBrain's hyperconformer checkpoints to model folders, and back.

A checkpoint of SpeechBrain's Transformer recipes holds

- ``model.ckpt`` (``asr.ckpt`` where it was published): front end, transformer, decoder
  head and CTC head, numbered 0 to 3; of a language model ``model.ckpt`` (``lm.ckpt``);
- ``normalizer.ckpt`` or ``normalize.ckpt``: mean and deviation of the features, or no
  such file where each utterance is normalised by itself.

A recipe leaves its checkpoints in ``OUTPUT_FOLDER/save/CKPT+...`` and the tokenizer in
``save`` as ``tokenizer.ckpt``, or as ``1000_bpe.model`` where the recipe trained it.
A published model has all of these in one folder.
"""

import pathlib
import pickle
import shutil

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML, SafeLoader
from ruamel.yaml.error import YAMLError
from sentencepiece import SentencePieceProcessor
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import (
    average_state_dicts,
    hook_on_loading_state_dict_checkpoint,
)

from hyperconformer.config import read_config, resolve_config
from hyperconformer.encoders.layer_mixers import layer_mixers
from hyperconformer.hub.folder import (
    TOKENIZER_FILE,
    find_model,
    load_model,
    read_settings,
    save_model,
)
from hyperconformer.lm.transformer import TransformerLM
from hyperconformer.mixers.hypermixing import sinusoidal_codes
from hyperconformer.mixers.registry import mixer_options
from hyperconformer.model.transformer_asr import STOCK_TYPES

# Where SpeechBrain's list of modules keeps what a Recognizer keeps under a name.
PREFIXES = {
    "0.": "frontend.",
    "1.": "transformer.",
    "2.w.": "decoder_head.",
    "3.w.": "ctc_head.",
}
MODEL_FILES = ("model.ckpt", "asr.ckpt")
LM_FILES = ("lm.ckpt", "model.ckpt")
NORMALIZER_FILES = ("normalizer.ckpt", "normalize.ckpt")
SPM_FILE = "tokenizer.ckpt"
# What SpeechBrain's Checkpointer notes of a checkpoint, and of one inside an epoch.
META_FILE, INTRA_EPOCH = "CKPT.yaml", "brain_intra_epoch_ckpt"
# The longest input of SpeechBrain's HyperMixing, in frames.
SPEECHBRAIN_POSITIONS = 3000
# Where SpeechBrain's HyperMixing has its hypernetworks, beside its position table.
_HYPERNET = "hyper.w1_gen.fc1_weights"
# Options of HyperMixing that change nothing that SpeechBrain's computes.
_NEUTRAL_OPTIONS = {"backend", "max_length"}


def recognizer_from_speechbrain(state):
    """Rename the weights of SpeechBrain's module list as a Recognizer has them.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        ``model.ckpt`` of a Transformer recipe.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    ValueError
        If a weight belongs to none of the four modules.

    Example
    -------
    >>> list(recognizer_from_speechbrain({"3.w.bias": torch.zeros(1)}))
    ['ctc_head.bias']
    """
    return _rename(hook_on_loading_state_dict_checkpoint(state), PREFIXES)


def recognizer_to_speechbrain(state):
    """Rename the weights of a Recognizer as SpeechBrain's module list has them.

    With the position tables of :func:`add_position_tables`, they load there strictly.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        State dict of a Recognizer.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    ValueError
        If a weight belongs to none of the four modules.
    """
    prefixes = {ours: theirs for theirs, ours in PREFIXES.items()}
    return _rename(add_position_tables(state), prefixes)


def add_position_tables(state):
    """Add the position tables that SpeechBrain's HyperMixing keeps among its weights.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        State dict of a :class:`~hyperconformer.HyperConformerASR`, or
        of anything that holds one.

    Returns
    -------
    dict of str to torch.Tensor
        Loads strictly into the same model of SpeechBrain's ``TransformerASR``.

    Example
    -------
    >>> from hyperconformer.model.transformer_asr import HyperConformerASR
    >>> model = HyperConformerASR(
    ...     tgt_vocab=10, input_size=8, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=0, d_ffn=32, normalize_before=True, causal=False,
    ... )
    >>> sorted(set(add_position_tables(model.state_dict())) - set(model.state_dict()))
    ['encoder.layers.0.mha_layer.positional_encoding.pe']
    """
    tables = {}
    for key in state:
        if key.endswith(_HYPERNET):
            mixer = key.removesuffix(_HYPERNET)
            scale = state[f"{mixer}layer_norm.weight"]
            codes = sinusoidal_codes(SPEECHBRAIN_POSITIONS, len(scale))[None]
            tables[f"{mixer}positional_encoding.pe"] = codes.to(scale)
    return {**state, **tables}


def _rename(state, prefixes):
    renamed = {}
    for key, value in state.items():
        for old, new in prefixes.items():
            if key.startswith(old):
                renamed[new + key[len(old) :]] = value
                break
        else:
            raise ValueError(
                f"no weight of a hyperconformer recipe: {key!r}; expected names that "
                f"begin with {', '.join(prefixes)}"
            )
    return renamed


def import_speechbrain(source, output, config_file, overrides=None):
    """Make a model folder of a SpeechBrain checkpoint.

    Arguments
    ---------
    source : str or pathlib.Path
        The output folder of a recipe, its ``save`` folder, one checkpoint, or a folder
        with the files of a published model. Where there are several checkpoints
        (:func:`find_checkpoints`), their average is taken, as the recipes do for
        testing.
    output : str or pathlib.Path
        The model folder to make.
    config_file : str or pathlib.Path
        YAML file that builds a model of the same sizes, such as
        ``recipes/LibriSpeech/hparams/hyperconformer_8M.yaml``; ``lm_transformer.yaml``
        for a language model.
    overrides : str or dict, optional
        Changes to that file.

    Returns
    -------
    pathlib.Path
        The model folder.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If weights and YAML file do not fit.
    """
    checkpoints = find_checkpoints(source)
    tokenizer_file = _find_tokenizer(_around(checkpoints[-1]))
    vocab_size = SentencePieceProcessor(model_file=str(tokenizer_file)).vocab_size()
    text = read_config(config_file, overrides)
    plain = YAML().load(text)
    if plain.get("task") == "language_model":
        keys, names = ["language_model"], ["language_model"]
    else:
        keys = ["sample_rate", "extractor", "recognizer"]
        names = ["extractor", "recognizer"]
    text = resolve_config(
        text, {"vocab_size": vocab_size, "data_folder": "", "output_folder": ""}, keys
    )
    config = load_hyperpyyaml(text)
    if "recognizer" in config:
        state = recognizer_from_speechbrain(_load_average(checkpoints, MODEL_FILES))
        _load_strictly(config["recognizer"], state, config_file)
        if config["extractor"].normalization == "global":
            # Running statistics: the last ones know most.
            file = _find(checkpoints[-1], *NORMALIZER_FILES)
            _import_normalizer(config["extractor"], file)
    else:
        state = _load_average(checkpoints, LM_FILES)
        _load_strictly(config["language_model"], state, config_file)
    modules = {name: config[name] for name in names}
    return save_model(output, text, modules, tokenizer_file)


def find_checkpoints(source):
    """The checkpoints that a conversion takes, from the oldest to the newest.

    Arguments
    ---------
    source : str or pathlib.Path
        As for :func:`import_speechbrain`.

    Returns
    -------
    list of pathlib.Path
        The folders of those at an epoch's end; where there are none, the newest inside
        an epoch; where there are no checkpoints at all, the source itself.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}")
    for folder in (source, source / "save"):
        notes = {
            file.parent: _read_notes(file)
            for file in folder.glob(f"CKPT+*/{META_FILE}")
        }
        if notes:
            found = sorted(
                notes, key=lambda path: float(notes[path].get("unixtime", 0))
            )
            whole = [path for path in found if INTRA_EPOCH not in notes[path]]
            return whole or found[-1:]
    return [source]


def _read_notes(file):
    """The keys and texts of a checkpoint's notes: SpeechBrain's reader runs code."""
    try:
        root = SafeLoader(file.read_text(encoding="utf-8")).get_single_node()
        return {key.value: value.value for key, value in root.value}
    # An empty file, as a kill may leave it, has no root.
    except (YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged; remove the folder to convert the other checkpoints"
        ) from error


def _around(checkpoint):
    """The folders in which a checkpoint's tokenizer may lie, the nearest first."""
    if not checkpoint.name.startswith("CKPT+"):
        return [checkpoint]
    save = checkpoint.parent
    return [checkpoint, save, *([save.parent] if save.name == "save" else [])]


def _find_tokenizer(folders):
    for folder in folders:
        if (folder / SPM_FILE).is_file():
            return folder / SPM_FILE
        models = sorted(folder.glob("*.model"))
        if len(models) > 1:
            raise ValueError(
                f"{folder} holds several tokenizers: "
                f"{', '.join(model.name for model in models)}; copy the right one to "
                f"{folder / SPM_FILE}"
            )
        if models:
            return models[0]
    raise FileNotFoundError(
        f"{' and '.join(map(str, folders))} holds no {SPM_FILE}: copy the "
        f"SentencePiece model of the recipe to {folders[0] / SPM_FILE}"
    )


def _load_average(checkpoints, names):
    """The average of the same file of several checkpoints."""
    files = [_find(checkpoint, *names) for checkpoint in checkpoints]
    return average_state_dicts(
        hook_on_loading_state_dict_checkpoint(_load(file)) for file in files
    )


def export_speechbrain(source, output):
    """Write the SpeechBrain checkpoint of a model folder.

    Arguments
    ---------
    source : str or pathlib.Path
        The model folder of a recogniser or of a Transformer language model, or the
        output folder of a training run.
    output : str or pathlib.Path
        Where ``model.ckpt``, ``normalizer.ckpt`` and ``tokenizer.ckpt`` go; for a
        language model ``lm.ckpt`` and ``tokenizer.ckpt``.

    Returns
    -------
    pathlib.Path
        The output folder.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If SpeechBrain's recipes have no such model: it has no attention decoder, or
        SpeechBrain's modules would compute something else with its weights or normalise
        its features in another way.
    """
    settings, output = read_settings(source), pathlib.Path(output)
    if "language_model" in settings:
        language_model = load_model(source, ("language_model",))[0]["language_model"]
        if not isinstance(language_model, TransformerLM):
            raise ValueError(
                f"{source} is a {type(language_model).__name__}, which SpeechBrain has "
                "not; its language model is the one of lm_transformer.yaml"
            )
        output.mkdir(parents=True, exist_ok=True)
        torch.save(language_model.state_dict(), output / LM_FILES[0])
    else:
        config, _ = load_model(source, ("extractor", "recognizer"))
        recognizer, extractor = config["recognizer"], config["extractor"]
        options = settings["recognizer"]["transformer"].get("mixer_options")
        _check_exportable(source, recognizer, extractor, options)
        output.mkdir(parents=True, exist_ok=True)
        state = recognizer_to_speechbrain(recognizer.state_dict())
        torch.save(state, output / MODEL_FILES[0])
        if extractor.normalization == "global":
            normalizer = InputNormalization(norm_type="global")
            normalizer.glob_mean, normalizer.glob_std = extractor.mean, extractor.std
            normalizer.count = 1
            normalizer._save(output / NORMALIZER_FILES[0])
    shutil.copyfile(find_model(source) / TOKENIZER_FILE, output / SPM_FILE)
    return output


def _check_exportable(source, recognizer, extractor, options):
    """Refuse what SpeechBrain's modules cannot hold or would compute otherwise."""
    if recognizer.decoder_head is None:
        raise ValueError(
            f"{source} has no attention decoder, but SpeechBrain's recipes have one"
        )
    mixer = recognizer.transformer.attention_type
    if isinstance(mixer, (list, dict)):
        raise ValueError(
            f"{source} has layers with different mixers ({mixer}); SpeechBrain's "
            "encoders have one mixer"
        )
    if mixer not in STOCK_TYPES:
        raise ValueError(
            f"{source} has the mixer {mixer!r}, which SpeechBrain has not; it has: "
            f"{', '.join(STOCK_TYPES)}"
        )
    known = mixer_options(mixer)
    layers = layer_mixers(mixer, options, len(recognizer.transformer.encoder.layers))
    found = [
        f"mixer_options.{name}: {value}"
        for _, own in layers
        for name, value in own.items()
        if name not in _NEUTRAL_OPTIONS and value != known[name].default
    ]
    others = list(dict.fromkeys(found))  # layers may say the same
    if recognizer.frontend.causal:
        others.append("a causal front end")
    # SpeechBrain's InputNormalization knows the other two.
    if "level" in extractor.normalization:
        others.append(f"normalization: {extractor.normalization}")
    if others:
        raise ValueError(f"{source} has {', '.join(others)}: SpeechBrain's has not")


def _find(folder, *names):
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds no {' or '.join(names)}, nor checkpoints of a recipe "
        "(CKPT+... or save/CKPT+...)"
    )


def _load(file):
    try:
        # Weights only: a downloaded file must not run code.
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).split("\n")[0]
        raise ValueError(
            f"{file} is damaged, or no file of weights: {first}"
        ) from error


def _load_strictly(module, state, config_file):
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights are not those of the model that {config_file} builds: {error}"
        ) from error


def _import_normalizer(extractor, file):
    statistics = _load(file)
    got, wanted = statistics["glob_mean"].shape, extractor.mean.shape
    if got != wanted:
        raise ValueError(
            f"{file} holds the mean of {tuple(got)} features, expected {tuple(wanted)}"
        )
    extractor.mean.copy_(statistics["glob_mean"])
    extractor.std.copy_(statistics["glob_std"].clamp(min=1e-10))
