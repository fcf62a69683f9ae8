"""Error messages that several parts share."""

import difflib
import reprlib


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
    near = difflib.get_close_matches(
        got if isinstance(got, str) else quoted(got), known, n=1
    )
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {quoted(got)}{hint} known: {', '.join(known) or 'none'}"


_SHORTENING = reprlib.Repr()
_SHORTENING.maxstring = _SHORTENING.maxother = 200


def quoted(value):
    """A value for a message, shortened: nested YAML aliases print exponentially.

    Arguments
    ---------
    value : object
        What somebody has given.

    Returns
    -------
    str

    Example
    -------
    >>> quoted("GO"), quoted([[[[[[[[1]]]]]]]])
    ("'GO'", '[[[[[[[...]]]]]]]')
    """
    return _SHORTENING.repr(value)
