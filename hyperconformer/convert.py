"""SpeechBrain's hyperconformer checkpoints to model folders, and back.

A checkpoint of SpeechBrain's Transformer recipes is a folder that holds

- ``model.ckpt`` (``asr.ckpt`` where it was published): front end, transformer, decoder
  head and CTC head, numbered 0 to 3, or, of a language model, ``lm.ckpt``;
- ``normalizer.ckpt``: mean and deviation of the features, or no such file where each
  utterance is normalised by itself;
- ``tokenizer.ckpt``: a SentencePiece model.

SpeechBrain leaves the tokenizer beside the checkpoints: copy it to that name.
"""

import pathlib
import shutil

import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML
from sentencepiece import SentencePieceProcessor
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import hook_on_loading_state_dict_checkpoint

from hyperconformer.config import read_config, resolve_config
from hyperconformer.mixers.hypermixing import PositionCodes, sinusoidal_codes
from hyperconformer.model_folder import (
    TOKENIZER_FILE,
    find_model,
    load_model,
    save_model,
)

# Where SpeechBrain's list of modules keeps what a Recognizer keeps under a name.
PREFIXES = {
    "0.": "frontend.",
    "1.": "transformer.",
    "2.w.": "decoder_head.",
    "3.w.": "ctc_head.",
}
MODEL_FILES = ("model.ckpt", "asr.ckpt")
LM_FILE = "lm.ckpt"
NORMALIZER_FILE = "normalizer.ckpt"
SPM_FILE = "tokenizer.ckpt"
# The longest input of SpeechBrain's HyperMixing, in frames.
SPEECHBRAIN_POSITIONS = 3000


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
    return _rename(state, {ours: theirs for theirs, ours in PREFIXES.items()})


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
        Folder with the files that the module's text names.
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
    source = pathlib.Path(source)
    tokenizer_file = _find(source, SPM_FILE)
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
        state = recognizer_from_speechbrain(_load(_find(source, *MODEL_FILES)))
        _load_strictly(config["recognizer"], state, config_file)
        if config["extractor"].normalization == "global":
            _import_normalizer(config["extractor"], _find(source, NORMALIZER_FILE))
    else:
        state = hook_on_loading_state_dict_checkpoint(_load(_find(source, LM_FILE)))
        _load_strictly(config["language_model"], state, config_file)
    modules = {name: config[name] for name in names}
    return save_model(output, text, modules, tokenizer_file)


def export_speechbrain(source, output):
    """Write the SpeechBrain checkpoint of a model folder.

    Arguments
    ---------
    source : str or pathlib.Path
        The model folder of a recogniser, or the output folder of a training run.
    output : str or pathlib.Path
        Where ``model.ckpt``, ``normalizer.ckpt`` and ``tokenizer.ckpt`` go.

    Returns
    -------
    pathlib.Path
        The output folder.

    Raises
    ------
    FileNotFoundError
        If there is no model.
    ValueError
        If it has no attention decoder, which SpeechBrain's recipes have.
    """
    config, _ = load_model(source, ("extractor", "recognizer"))
    recognizer, extractor = config["recognizer"], config["extractor"]
    if recognizer.decoder_head is None:
        raise ValueError(
            f"{source} has no attention decoder, but SpeechBrain's recipes have one"
        )
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    state = {**recognizer.state_dict(), **_position_tables(recognizer)}
    torch.save(recognizer_to_speechbrain(state), output / MODEL_FILES[0])
    if extractor.normalization == "global":
        normalizer = InputNormalization(norm_type="global")
        normalizer.glob_mean, normalizer.glob_std = extractor.mean, extractor.std
        normalizer.count = 1
        normalizer._save(output / NORMALIZER_FILE)
    shutil.copyfile(find_model(source) / TOKENIZER_FILE, output / SPM_FILE)
    return output


def _position_tables(recognizer):
    """The tables that SpeechBrain's HyperMixing keeps among its weights."""
    return {
        f"{name}.pe": sinusoidal_codes(SPEECHBRAIN_POSITIONS, module.width)[None]
        for name, module in recognizer.named_modules()
        if isinstance(module, PositionCodes)
    }


def _find(folder, *names):
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} holds no {' or '.join(names)}")


def _load(file):
    # Weights only: a downloaded file must not run code.
    return torch.load(file, map_location="cpu", weights_only=True)


def _load_strictly(module, state, config_file):
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights are not those of the model that {config_file} builds: {error}"
        ) from error


def _import_normalizer(extractor, file):
    statistics = _load(file)
    extractor.mean.copy_(statistics["glob_mean"])
    extractor.std.copy_(statistics["glob_std"].clamp(min=1e-10))
