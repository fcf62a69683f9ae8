"""Dynamic chunk training: one model for the whole utterance and for several latencies.

"Unified Streaming and Non-streaming Two-pass End-to-end Model for Speech
Recognition", arXiv:2012.05481: each batch is trained under a random chunk rule.
SpeechBrain's sampler draws it; here it draws a right context too. This module checks
the sampler's settings and makes the rules of the evaluation.
"""

from dataclasses import dataclass

import torch
from speechbrain import Stage
from speechbrain.utils.dynamic_chunk_training import (
    DynChunkTrainConfig,
    DynChunkTrainConfigRandomSampler,
)

from hyperconformer.model.chunks import LookAheadConfig, chunk_config, chunk_rule
from hyperconformer.model.features import frame_ms


@dataclass
class ChunkSampler(DynChunkTrainConfigRandomSampler):
    """SpeechBrain's sampler of chunks, which draws their right context too.

    Arguments
    ---------
    right_context_prob : float
        Part of the batches in chunks whose chunks see ahead.
    right_context_min, right_context_max : int
        So many frames ahead; every number is equally likely.
    """

    right_context_prob: float = 0.0
    right_context_min: int = 1
    right_context_max: int = 1

    def __call__(self, stage):
        """A rule for the next batch, see SpeechBrain's sampler.

        Arguments
        ---------
        stage : speechbrain.Stage
            Rules are drawn in training only.

        Returns
        -------
        speechbrain DynChunkTrainConfig or None
        """
        config = super().__call__(stage)
        # Without a right context, nothing more is drawn: such runs repeat as before.
        if config is None or stage != Stage.TRAIN or self.right_context_prob == 0:
            return config
        if not self._sample_bool(self.right_context_prob):
            return config
        low, high = self.right_context_min, self.right_context_max
        right = int(torch.randint(low, high + 1, (1,)).item())
        return LookAheadConfig(config.chunk_size, config.left_context_size, right)


def chunks_to_test(settings):
    """Return the chunk rules for decoding the sets.

    Arguments
    ---------
    settings : hyperconformer.training.settings.ASRSettings
        The settings, built.

    Returns
    -------
    dict of str to speechbrain DynChunkTrainConfig or None
        Suffix of the set's name, such as ``"_640ms"``, to the rule.

    Raises
    ------
    ValueError
        If there is no rule, or a chunk is not a whole number of frames.
    """
    chunks_ms = settings.test_chunks_ms
    if not chunks_ms:
        raise ValueError("test_chunks_ms is empty; [null] decodes whole utterances")
    length = frame_ms(settings.extractor, settings.recognizer.frontend)
    right_ms = settings.test_right_context_ms
    if right_ms and set(chunks_ms) == {None}:
        raise ValueError(
            f"test_right_context_ms: {right_ms:g} needs chunks in test_chunks_ms"
        )
    ahead = f"+{right_ms:g}" if right_ms else ""
    return {
        "" if chunk_ms is None else f"_{chunk_ms:g}{ahead}ms": chunk_config(
            chunk_ms, settings.test_left_context_ms, length, right_ms
        )
        for chunk_ms in chunks_ms
    }


def check_chunk_training(settings):
    """Check the chunk settings before the training begins.

    Arguments
    ---------
    settings : hyperconformer.training.settings.ASRSettings
        The settings, built.

    Raises
    ------
    ValueError
        If a setting is out of range, or the model does not support a rule.
    """
    configs = list(chunks_to_test(settings).values())
    sampler = settings.dynchunktrain_config_sampler
    _check_sampler(sampler)
    if sampler.chunkwise_prob > 0:
        limited = sampler.limited_left_context_prob > 0
        least = sampler.left_context_chunks_min if limited else None
        configs += [DynChunkTrainConfig(sampler.chunk_size_min, least)]
        if getattr(sampler, "right_context_prob", 0) > 0:
            right = sampler.right_context_max
            configs += [LookAheadConfig(sampler.chunk_size_min, least, right)]
        configs += [sampler.valid_config]
    for chunk in filter(None, configs):
        _check_model(settings.recognizer, chunk_rule(chunk))


def _check_sampler(sampler):
    probabilities = ["chunkwise_prob", "limited_left_context_prob"]
    ranges = [("chunk_size", 1), ("left_context_chunks", 0)]
    if isinstance(sampler, ChunkSampler):  # SpeechBrain's own knows no right context.
        probabilities.append("right_context_prob")
        ranges.append(("right_context", 1))
        if sampler.right_context_prob > 0 and sampler.chunkwise_prob == 0:
            raise ValueError(
                "right_context_prob needs chunks, got chunkwise_prob: 0 with it"
            )
    for name in probabilities:
        value = getattr(sampler, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    for name, least in ranges:
        low, high = getattr(sampler, f"{name}_min"), getattr(sampler, f"{name}_max")
        if not least <= low <= high:
            raise ValueError(
                f"{name}_min and {name}_max must satisfy {least} <= min <= max, "
                f"got {low} and {high}"
            )
    if sampler.test_config is not None:
        raise ValueError(
            "the sampler's test_config is not used: set the rules of the evaluation "
            f"in test_chunks_ms; got {sampler.test_config}"
        )


def _check_model(recognizer, rule):
    """Encode one frame: the encoder or its mixers refuse an unsupported rule."""
    encoder = recognizer.transformer.encoder
    (width,) = encoder.norm.norm.normalized_shape
    was_training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(torch.zeros(1, 1, width), None, rule)
    finally:
        encoder.train(was_training)
