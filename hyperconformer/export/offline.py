"""The graph of whole utterances."""

from typing import Any

import torch
from torch import nn

from hyperconformer.export.features import exportable
from hyperconformer.model.features import FeatureExtractor
from hyperconformer.model.recognizer import Recognizer

# Of the phone head.
PHONE_OUTPUT = "phone_log_probs"


class OfflineGraph(nn.Module):
    """Samples of whole utterances to log-probabilities.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Samples to features.
    recognizer : hyperconformer.model.recognizer.Recognizer
        Features to log-probabilities; of its heads the graph has those of CTC.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Names, with :data:`PHONE_OUTPUT` where the recogniser has a phone head.
    """

    inputs = ("samples", "lengths")
    outputs: tuple[str, ...] = ("log_probs", "frames")

    def __init__(self, extractor: FeatureExtractor, recognizer: Recognizer):
        super().__init__()
        self.extractor = exportable(extractor)
        self.recognizer = recognizer.eval()
        if recognizer.phones:
            self.outputs = (*self.outputs, PHONE_OUTPUT)

    def forward(
        self, samples: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Recognise.

        Arguments
        ---------
        samples : torch.Tensor
            (B, N) float32, full scale = 1; padding may hold anything finite.
        lengths : torch.Tensor
            (B,) int64 samples of each utterance.

        Returns
        -------
        log_probs : torch.Tensor
            (B, T, V) float32 of the CTC head.
        frames : torch.Tensor
            (B,) int64 frames of each utterance.
        phone_log_probs : torch.Tensor
            (B, T, P) float32 of the phone head, where there is one.
        """
        features, frames = self.extractor(samples, lengths / samples.shape[1])
        found = self.recognizer(features, frames)
        if not self.recognizer.phones:
            return found.ctc, found.lengths
        phones = self.recognizer.phone_log_probs(found.encoded)
        return found.ctc, found.lengths, phones

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs to record the graph with: two utterances, one of them padded."""
        samples = self.extractor.features.compute_STFT.sample_rate
        lengths = torch.tensor([samples // 2, samples])
        return 0.1 * torch.randn(2, samples), lengths

    def dynamic_shapes(self) -> dict[str, Any]:
        """Which sizes may differ between calls."""
        batch = torch.export.Dim("batch")
        # Cutting windows makes guards that every length meets: no range to be given.
        samples = torch.export.Dim.DYNAMIC
        return {"samples": {0: batch, 1: samples}, "lengths": {0: batch}}
