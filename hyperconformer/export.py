"""A trained model as a folder: settings, weights and tokenizer, nothing else."""

import pathlib
import shutil

from safetensors.torch import save_file

CONFIG_FILE = "hyperparams.yaml"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"

# What a model needs of the YAML file that trained it.
MODEL_KEYS = ("sample_rate", "extractor", "recognizer")


def save_model(folder, config_text, extractor, recognizer, tokenizer_file):
    """Write a model folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        Made if absent.
    config_text : str
        HyperPyYAML text with the keys ``MODEL_KEYS`` and no other references.
    extractor : torch.nn.Module
        Its key ``extractor``, trained.
    recognizer : torch.nn.Module
        Its key ``recognizer``, trained.
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
    weights = {}
    for name, module in (("extractor", extractor), ("recognizer", recognizer)):
        for key, value in module.state_dict().items():
            weights[f"{name}.{key}"] = value.detach().cpu().contiguous()
    save_file(weights, folder / WEIGHTS_FILE)
    shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
    return folder
