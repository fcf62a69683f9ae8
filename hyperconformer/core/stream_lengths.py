"""Chunk and right context of streams, where nobody says otherwise.

Importing this imports nothing else: the command line's help names them.
"""

import numbers

CHUNK_MS, RIGHT_CONTEXT_MS = 560, 80


def stream_lengths(chunk_ms=None, right_context_ms=None):
    """Chunk and right context of a stream, where one or both may be left open.

    Arguments
    ---------
    chunk_ms : float, optional
        Length of a chunk; None = 560.
    right_context_ms : float, optional
        What a chunk sees after it; None = 80 if the chunk is left open too, else 0.

    Returns
    -------
    chunk_ms, right_context_ms : float

    Raises
    ------
    ValueError
        If one is no number.

    Example
    -------
    >>> stream_lengths(), stream_lengths(640), stream_lengths(320, 80)
    ((560, 80), (640, 0), (320, 80))
    """
    for name, length in (("chunk", chunk_ms), ("right context", right_context_ms)):
        if not isinstance(length, numbers.Real | None):
            raise ValueError(f"a {name} is a number of milliseconds, got {length!r}")
    if right_context_ms is None:
        right_context_ms = RIGHT_CONTEXT_MS if chunk_ms is None else 0
    return CHUNK_MS if chunk_ms is None else chunk_ms, right_context_ms
