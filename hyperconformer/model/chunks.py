"""Chunk rules: how far frames see, in frames and in milliseconds."""

import math
from dataclasses import dataclass

from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from hyperconformer.core.masks import ChunkRule


@dataclass
class LookAheadConfig(DynChunkTrainConfig):
    """SpeechBrain's configuration of a chunk, with a look-ahead.

    Arguments
    ---------
    right_context_size : int
        Frames after a chunk that it sees, see :class:`ChunkRule`.

    Example
    -------
    >>> LookAheadConfig(12, right_context_size=4)
    LookAheadConfig(chunk_size=12, left_context_size=None, right_context_size=4)
    """

    right_context_size: int = 0


def chunk_rule(dynchunktrain_config):
    """SpeechBrain's dynamic chunk configuration as a :class:`ChunkRule`.

    Arguments
    ---------
    dynchunktrain_config : speechbrain DynChunkTrainConfig or None
        Chunk size in frames, left context in chunks; a :class:`LookAheadConfig` has a
        right context too.

    Returns
    -------
    ChunkRule or None
    """
    if dynchunktrain_config is None:
        return None
    return ChunkRule(
        dynchunktrain_config.chunk_size,
        dynchunktrain_config.left_context_size,
        getattr(dynchunktrain_config, "right_context_size", 0),
    )


def chunk_config(chunk_ms, left_context_ms, frame_ms, right_context_ms=0):
    """A chunk in milliseconds as SpeechBrain's configuration in frames.

    Arguments
    ---------
    chunk_ms : float or None
        Length of a chunk; None = the whole utterance.
    left_context_ms : float or None
        What a chunk sees before it, at least; None = everything.
    frame_ms : float
        Length of an encoder frame.
    right_context_ms : float
        What a chunk sees after it.

    Returns
    -------
    speechbrain DynChunkTrainConfig or None
        A :class:`LookAheadConfig` if there is a right context.

    Raises
    ------
    ValueError
        If the chunk is no positive number of whole frames, the right context no number
        of whole frames, or the left context negative.

    Example
    -------
    >>> chunk_config(640, 1000, frame_ms=40)
    DynChunkTrainConfig(chunk_size=16, left_context_size=2)
    """
    if left_context_ms is not None and not 0 <= left_context_ms < math.inf:
        raise ValueError(
            f"a left context must be >= 0 ms and finite, got {left_context_ms}"
        )
    right = right_context_ms / frame_ms
    if not (0 <= right < math.inf and right == int(right)):
        raise ValueError(
            f"a right context must last a multiple of {frame_ms:g} ms, "
            f"got {right_context_ms:g} ms"
        )
    if chunk_ms is None:
        return None
    frames = chunk_ms / frame_ms
    if not (1 <= frames < math.inf and frames == int(frames)):
        raise ValueError(
            f"a chunk must last a multiple of {frame_ms:g} ms, got {chunk_ms:g} ms"
        )
    left = None if left_context_ms is None else math.ceil(left_context_ms / chunk_ms)
    if right == 0:
        return DynChunkTrainConfig(int(frames), left)
    return LookAheadConfig(int(frames), left, int(right))
