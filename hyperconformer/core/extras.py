"""Optional packages, and the extra of this package that installs each."""

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A package that an extra installs is missing; the message names the extra."""


def import_extra(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports a package that only an extra installs.

    Arguments
    ---------
    module : str
        What to import.
    extra : str
        The extra in ``setup.py`` that installs it.
    purpose : str
        What needs it; the message begins with this.

    Returns
    -------
    module

    Raises
    ------
    MissingExtraError
        If the package is not installed.

    Example
    -------
    >>> import_extra("math", "train", "plots").pi
    3.141592653589793
    >>> try:
    ...     import_extra("no_such_package", "train", "plots")
    ... except MissingExtraError as error:
    ...     print(error)
    plots need no_such_package: pip install "hyperconformer[train]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        # A module that the package itself misses is another fault.
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{purpose} need {package}: pip install "hyperconformer[{extra}]"',
            name=package,
        ) from error


def import_pyplot() -> ModuleType:
    """Imports matplotlib's ``pyplot``, set to draw into files.

    Returns
    -------
    module

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    import_extra("matplotlib", "train", "plots").use("Agg")
    return import_extra("matplotlib.pyplot", "train", "plots")
