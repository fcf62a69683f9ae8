"""Recordings that begin or end with speech get silence there.

Models are trained on recordings with a pause around the speech. Of a word that is cut
out tightly they often hear nothing. Silence shifts the mean of an utterance, so only
models whose features do not depend on it get some (:func:`silence_for`).
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F

from hyperconformer.model.features import FeatureExtractor

# What is put before or after speech. A multiple of the frame of 40 ms.
SILENCE_S = 0.24
# An edge is speech if, so near to the recording's end, a frame has a power that is less
# than so many decibels below the loudest frame's.
NEAR_S, FRAME_S, BELOW_DB = 0.1, 0.025, 20.0


class Edges:
    """Blocks of samples, with silence before and after speech that touches an edge.

    Arguments
    ---------
    blocks : iterable of torch.Tensor
        (N,) samples each.
    sample_rate_hz : int
        Their rate.
    silence_s : float
        Seconds of silence.

    Attributes
    ----------
    before, after : int
        Samples of silence that were put there, as soon as it is known.

    Example
    -------
    >>> edges = Edges([torch.cat([torch.ones(800), torch.zeros(7200)]).cumsum(0).sin()])
    >>> blocks = list(edges)
    >>> edges.before, edges.after
    (3840, 0)
    """

    def __init__(
        self,
        blocks: Iterable[torch.Tensor],
        sample_rate_hz: int = 16000,
        silence_s: float = SILENCE_S,
    ):
        self.blocks, self.sample_rate_hz = blocks, sample_rate_hz
        self.silence_s = silence_s
        self.before = self.after = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        near = round(NEAR_S / FRAME_S)
        silence = torch.zeros(round(self.silence_s * self.sample_rate_hz))
        last, tail, loudest = None, torch.zeros(0), 0.0
        for block in self._blocks(near):
            powers = self._powers(block)
            loudest = max(loudest, powers.max().item())
            tail = torch.cat([tail, powers])[-near:]
            if last is not None:
                yield last
            elif len(silence) and self._is_speech(powers[:near], loudest):
                self.before = len(silence)
                yield silence.to(block)
            last = block
        if last is not None:
            yield last
            if len(silence) and self._is_speech(tail, loudest):
                self.after = len(silence)
                yield silence.to(last)

    def _blocks(self, near):
        """The blocks that hold samples; the first is long enough to be judged."""
        first, needed = [], near * round(FRAME_S * self.sample_rate_hz)
        for block in self.blocks:
            if first is None:
                if len(block):
                    yield block
                continue
            first.append(block)
            if sum(map(len, first)) >= needed:
                yield torch.cat(first)
                first = None
        if first and sum(map(len, first)):
            yield torch.cat(first)

    def _powers(self, block):
        """(K,) power of each frame, without its offset."""
        size = min(round(FRAME_S * self.sample_rate_hz), len(block))
        frames = block[: len(block) // size * size].double().view(-1, size)
        return frames.var(dim=1, correction=0)

    @staticmethod
    def _is_speech(powers, loudest):
        return bool(powers.max() > loudest * 10 ** (-BELOW_DB / 10))


def silence_for(extractor: FeatureExtractor) -> float:
    """The seconds of silence for a model.

    With ``normalization: level`` or ``running_level``, features of speech are the same
    with silence around it. Other models recognise what their evaluation in training
    recognised: the recording as it is.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        The model's.

    Returns
    -------
    float
    """
    return SILENCE_S if "level" in extractor.normalization else 0.0


def with_silence(
    samples: torch.Tensor, sample_rate_hz: int, silence_s: float = SILENCE_S
) -> tuple[torch.Tensor, int, int]:
    """The same of a whole recording.

    Arguments
    ---------
    samples : torch.Tensor
        (N,).
    sample_rate_hz : int
        Their rate.
    silence_s : float
        Seconds of silence.

    Returns
    -------
    samples : torch.Tensor
        (before + N + after,).
    before, after : int
        Samples of silence.
    """
    edges = Edges([samples], sample_rate_hz, silence_s)
    list(edges)
    return F.pad(samples, (edges.before, edges.after)), edges.before, edges.after
