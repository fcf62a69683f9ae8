"""Chunk and right context of streams, where nobody says otherwise.

Importing this imports nothing else: the command line's help names them.
"""

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

    Example
    -------
    >>> stream_lengths(), stream_lengths(640), stream_lengths(320, 80)
    ((560, 80), (640, 0), (320, 80))
    """
    if right_context_ms is None:
        right_context_ms = RIGHT_CONTEXT_MS if chunk_ms is None else 0
    return CHUNK_MS if chunk_ms is None else chunk_ms, right_context_ms
