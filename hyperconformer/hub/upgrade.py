"""``config.json`` for model folders of version 0.2 and before.

    python -m hyperconformer.hub.upgrade FOLDER [FOLDER ...]

Those folders described the model in ``hyperparams.yaml`` alone. Nothing of that file is
run. Weights and tokenizer stay as they are.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from hyperconformer.hub.config import MODULES, NGRAM_SETTINGS, VERSION
from hyperconformer.hub.folder import (
    CONFIG_FILE,
    NGRAM_FILE,
    SPEECHBRAIN_FILE,
    check_file,
    load_model,
    write_settings,
)
from hyperconformer.hub.hyperparams import MODEL_KEYS, from_hyperpyyaml


def upgrade(folder: str | pathlib.Path, trusted: bool = False) -> pathlib.Path:
    """Write ``config.json`` from the ``hyperparams.yaml`` of an older folder.

    The folder must load with it; then ``hyperparams.yaml`` is written anew as well.

    Arguments
    ---------
    folder : str or pathlib.Path
        The model folder; a training run has it as ``model``.
    trusted : bool
        True lets the settings name classes of your own.

    Returns
    -------
    pathlib.Path
        The new file.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the folder has the file already, ``hyperparams.yaml`` is damaged, or this
        version cannot load the model.
    """
    folder = pathlib.Path(folder)
    path = folder / CONFIG_FILE
    if path.exists():
        raise ValueError(f"{path} is there already")
    text = check_file(folder, SPEECHBRAIN_FILE).read_text(encoding="utf-8-sig")
    keys = (*MODEL_KEYS, *NGRAM_SETTINGS)
    old = from_hyperpyyaml(text, keys, folder / SPEECHBRAIN_FILE)
    ngram = {name: old.pop(name) for name in NGRAM_SETTINGS if name in old}
    config = {"version": VERSION, "tokenizer": "sentencepiece", **old}
    if (folder / NGRAM_FILE).is_file():
        config["ngram"] = ngram
    names = [name for name in MODULES if name in config]
    try:
        path.write_text(json.dumps(config), encoding="utf-8")
        modules, _ = load_model(folder, names, trusted=trusted)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    write_settings(folder, config, {name: modules[name] for name in names})
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Upgrade the folders of a command line.

    Arguments
    ---------
    arguments : list of str, optional
        None = those of the process.

    Returns
    -------
    int
        Exit code: 1 if a folder could not be upgraded.
    """
    parser = argparse.ArgumentParser(
        "python -m hyperconformer.hub.upgrade", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--trusted", action="store_true", help="let it name classes of your own"
    )
    options = parser.parse_args(arguments)
    failed = 0
    for folder in options.folders:
        try:
            print(upgrade(folder, options.trusted))
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
