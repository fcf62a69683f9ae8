"""What comes with the package: recipes, ablations and their names; models' folder.

``hparams/``, ``recipes/`` and ``pretrained/`` stand at the top of the repository. A
wheel holds them as data of the package (``setup.py``), beside each other as here, so
that one YAML file finds another as its ``base:``.
"""

import pathlib
from typing import Dict, Union

from hyperconformer.core.messages import unknown

PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def find_folder(name: str) -> pathlib.Path:
    """A shipped folder: in the package if a wheel installed it, else the repository's.

    Arguments
    ---------
    name : str
        Of the folder at the top of the repository.

    Returns
    -------
    pathlib.Path

    Example
    -------
    >>> find_folder("pretrained").name
    'pretrained'
    """
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


def list_recipes() -> Dict[str, pathlib.Path]:
    """The shipped recipes.

    Returns
    -------
    dict of str to pathlib.Path
        Names to YAML files: those in ``hparams/`` by their own name, those in
        ``recipes/CORPUS/hparams/`` after the corpus in small letters.

    Example
    -------
    >>> list_recipes()["an4/hyperconformer"].as_posix().split("/")[-4:]
    ['recipes', 'AN4', 'hparams', 'hyperconformer.yaml']
    """
    recipes = _by_stem(find_folder("hparams"))
    for folder in sorted(find_folder("recipes").glob("*/hparams")):
        recipes.update(_by_stem(folder, f"{folder.parent.name.lower()}/"))
    return recipes


def list_ablations() -> Dict[str, pathlib.Path]:
    """The shipped ablations.

    Returns
    -------
    dict of str to pathlib.Path
        Names to YAML files.

    Example
    -------
    >>> list_ablations()["heads"].name
    'heads.yaml'
    """
    return _by_stem(find_folder("hparams") / "ablations")


def find_recipe(
    name: Union[str, pathlib.Path], folder: Union[str, pathlib.Path] = "."
) -> str:
    """The YAML file behind what a user names.

    Arguments
    ---------
    name : str or pathlib.Path
        A YAML file, or the name of a shipped recipe.
    folder : str or pathlib.Path
        What the file's path is relative to.

    Returns
    -------
    str
        Its path.

    Raises
    ------
    ValueError
        If there is neither such a file nor such a recipe.
    """
    return _find("recipe", pathlib.Path(folder, name), str(name), list_recipes())


def find_ablation(name: Union[str, pathlib.Path]) -> str:
    """The same as :func:`find_recipe`, for an ablation."""
    return _find("ablation", pathlib.Path(name), str(name), list_ablations())


def describe(path: pathlib.Path) -> str:
    """The first line of a shipped YAML file: a comment that says what it is.

    Arguments
    ---------
    path : pathlib.Path
        The file.

    Returns
    -------
    str
    """
    with open(path, encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def _find(kind, path, name, shipped):
    # A missing YAML file is reported by the reader, which knows its bases too.
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return str(path)
    if name not in shipped:
        raise ValueError(unknown(kind, name, list(shipped)))
    return str(shipped[name])


def _by_stem(folder, prefix=""):
    return {f"{prefix}{file.stem}": file for file in sorted(folder.glob("*.yaml"))}
