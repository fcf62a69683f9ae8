"""Dynamic chunk training: one model for the whole utterance and for several latencies.

"Unified Streaming and Non-streaming Two-pass End-to-end Model for Speech
Recognition", arXiv:2012.05481: each batch is trained under a chunk rule drawn at
random. SpeechBrain's sampler draws it; here its settings are checked, and the rules
of the evaluation are made.
"""

import math

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from hyperconformer.integration.asr import chunk_rule
from hyperconformer.integration.frontend import frame_ms
from hyperconformer.mixers.base import TokenMixer


def chunk_config(chunk_ms, left_context_ms, frame_ms):
    """A chunk in milliseconds as SpeechBrain's configuration in frames.

    Arguments
    ---------
    chunk_ms : float or None
        Length of a chunk; None = the whole utterance.
    left_context_ms : float or None
        What a chunk sees before it, at least; None = everything.
    frame_ms : float
        Length of an encoder frame.

    Returns
    -------
    speechbrain DynChunkTrainConfig or None

    Raises
    ------
    ValueError
        If the chunk is no positive number of whole frames, or the context negative.

    Example
    -------
    >>> chunk_config(640, 1000, frame_ms=40)
    DynChunkTrainConfig(chunk_size=16, left_context_size=2)
    """
    if left_context_ms is not None and left_context_ms < 0:
        raise ValueError(f"a left context must be >= 0 ms, got {left_context_ms}")
    if chunk_ms is None:
        return None
    frames = chunk_ms / frame_ms
    if frames < 1 or frames != int(frames):
        raise ValueError(
            f"a chunk must last a multiple of {frame_ms:g} ms, got {chunk_ms:g} ms"
        )
    left = None if left_context_ms is None else math.ceil(left_context_ms / chunk_ms)
    return DynChunkTrainConfig(int(frames), left)


def chunks_to_test(config):
    """The rules under which the sets are decoded.

    Arguments
    ---------
    config : dict
        The loaded YAML file, with ``test_chunks_ms``, ``test_left_context_ms``,
        ``extractor`` and ``recognizer``.

    Returns
    -------
    dict of str to speechbrain DynChunkTrainConfig or None
        What is appended to a set's name, such as ``"_640ms"``, to the rule.

    Raises
    ------
    ValueError
        If there is none, or one is no number of whole frames.
    """
    chunks_ms = config["test_chunks_ms"]
    if not chunks_ms:
        raise ValueError("test_chunks_ms is empty; [null] decodes whole utterances")
    length = frame_ms(config["extractor"], config["recognizer"].frontend)
    return {
        "" if chunk_ms is None else f"_{chunk_ms:g}ms": chunk_config(
            chunk_ms, config["test_left_context_ms"], length
        )
        for chunk_ms in chunks_ms
    }


def check_chunk_training(config):
    """Refuse settings of chunks before the training begins, not in its midst.

    Arguments
    ---------
    config : dict
        The loaded YAML file.

    Raises
    ------
    ValueError
        If a setting is out of range, or the model cannot honour a rule.
    """
    configs = list(chunks_to_test(config).values())
    sampler = config["dynchunktrain_config_sampler"]
    _check_sampler(sampler)
    if sampler.chunkwise_prob > 0:
        limited = sampler.limited_left_context_prob > 0
        least = sampler.left_context_chunks_min if limited else None
        configs += [DynChunkTrainConfig(sampler.chunk_size_min, least)]
        configs += [sampler.valid_config]
    for chunk in filter(None, configs):
        _check_model(config["recognizer"], chunk_rule(chunk))


def _check_sampler(sampler):
    for name in ("chunkwise_prob", "limited_left_context_prob"):
        value = getattr(sampler, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    for name, least in (("chunk_size", 1), ("left_context_chunks", 0)):
        low, high = getattr(sampler, f"{name}_min"), getattr(sampler, f"{name}_max")
        if not least <= low <= high:
            raise ValueError(
                f"{name}_min and {name}_max must satisfy {least} <= min <= max, "
                f"got {low} and {high}"
            )
    if sampler.test_config is not None:
        raise ValueError(
            "the sampler's test_config is not used: the rules of the evaluation "
            f"stand in test_chunks_ms; got {sampler.test_config}"
        )


def _check_model(recognizer, rule):
    """A mixer says itself what it cannot honour, of a single frame already."""
    for mixer in recognizer.modules():
        if isinstance(mixer, TokenMixer):
            with torch.no_grad():
                mixer(torch.zeros(1, 1, mixer.d_model), chunk=rule)
