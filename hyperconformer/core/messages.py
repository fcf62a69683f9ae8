"""Error messages that several parts share."""

import difflib


def unknown(kind, got, known):
    """The message for an unknown name: what was got, what is known, the nearest.

    Arguments
    ---------
    kind : str
        What the name should have been, for instance "mixer".
    got : str
        The name.
    known : list of str
        The names that would do.

    Returns
    -------
    str

    Example
    -------
    >>> unknown("key", "lrr", ["lr", "seed"])
    "unknown key 'lrr'; did you mean 'lr'? known: lr, seed"
    """
    near = difflib.get_close_matches(str(got), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {got!r}{hint} known: {', '.join(known) or 'none'}"
