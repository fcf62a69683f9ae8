"""A trained model as a folder: settings, weights and tokenizer, nothing else."""

import pathlib
import shutil

from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor

CONFIG_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"


def save_model(folder, config_text, modules, tokenizer_file):
    """Write a model folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if absent.
    config_text : str
        HyperPyYAML text that builds the modules, each under its name.
    modules : dict of str to torch.nn.Module
        The trained modules.
    tokenizer_file : str or pathlib.Path
        The SentencePiece model.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(config_text, encoding="utf-8")
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
    return folder


def load_model(source, names, device="cpu"):
    """Read a model folder.

    Arguments
    ---------
    source : str or pathlib.Path
        The folder, or the output folder of a training run that holds it.
    names : collection of str
        The modules that it should hold.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    config : dict
        The keys of its YAML file; the modules among them with their weights, in
        evaluation mode.
    tokenizer : sentencepiece.SentencePieceProcessor

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    ValueError
        If it is the folder of another kind of model.
    """
    folder = find_model(source)
    text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    config = load_hyperpyyaml(text)
    if not set(names) <= set(config):
        raise ValueError(
            f"{folder} should hold {', '.join(names)}, but holds: {', '.join(config)}"
        )
    weights = load_file(folder / WEIGHTS_FILE, device=str(device))
    for name in names:
        prefix = f"{name}."
        own = {
            key[len(prefix) :]: value
            for key, value in weights.items()
            if key.startswith(prefix)
        }
        config[name].to(device).load_state_dict(own, strict=True)
        config[name].eval()
    tokenizer = SentencePieceProcessor(model_file=str(folder / TOKENIZER_FILE))
    return config, tokenizer


def find_model(source):
    """The model folder behind a folder that a user names.

    Arguments
    ---------
    source : str or pathlib.Path
        A model folder, or the output folder of a training run.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        Naming what is missing.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no such model folder: {source}")
    folder = source if (source / WEIGHTS_FILE).is_file() else source / "model"
    for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{source} is no model folder: it lacks {name}, also in its folder "
                "`model`, where a finished training run leaves it"
            )
    return folder
