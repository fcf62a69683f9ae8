"""The spectra of an ONNX graph: windows cut by slices, transformed by a matrix.

ONNX has an operator for the Fourier transform, but ONNX Runtime's is slow and its
WebAssembly build may lack it; a product with a (window, 2 F) matrix runs anywhere.
"""

import copy
import math

import torch
import torch.nn.functional as F

from hyperconformer.model.features import FeatureExtractor, ZeroMeanSTFT


class MatrixSTFT(ZeroMeanSTFT):
    """A STFT of the same output, made of what every ONNX runtime has.

    Arguments
    ---------
    stft : speechbrain.processing.features.STFT
        One-sided, not normalised, padding with zeros; a
        :class:`~hyperconformer.model.features.ZeroMeanSTFT` keeps subtracting the mean
        of its frames.

    Raises
    ------
    ValueError
        If it is another kind of STFT.

    Example
    -------
    >>> stft = ZeroMeanSTFT(16000, n_fft=512)
    >>> x = torch.randn(1, 1600)
    >>> bool((MatrixSTFT(stft)(x) - stft(x)).abs().max() < 1e-4)
    True
    """

    def __init__(self, stft):
        super().__init__(stft.sample_rate)
        self.__dict__.update(vars(stft))
        if stft.pad_mode != "constant" or stft.normalized_stft or not stft.onesided:
            raise ValueError(
                "only a one-sided STFT that pads with zeros and is not normalised can "
                f"be exported, got pad_mode={stft.pad_mode!r}, "
                f"normalized_stft={stft.normalized_stft}, onesided={stft.onesided}"
            )
        self.subtracts_mean = isinstance(stft, ZeroMeanSTFT)
        # Of what is under the window; its place within the transform turns phases.
        time = torch.arange(self.win_length, dtype=torch.float64) + self._margin()
        bins = torch.arange(self.n_fft // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi / self.n_fft * time[:, None] * bins
        basis = torch.cat([angles.cos(), -angles.sin()], dim=1)
        self.basis = (basis * stft.window.double()[:, None]).float()

    def forward(self, x, recorded=None):
        """As :meth:`ZeroMeanSTFT.forward`."""
        frames = self._frames(x)
        if self.subtracts_mean:
            if recorded is None:
                recorded = torch.ones_like(x, dtype=torch.bool)
            recorded = self._frames(recorded.to(x.dtype))
            counts = recorded.sum(-1, keepdim=True).clamp(min=1)
            means = (frames * recorded).sum(-1, keepdim=True) / counts
            frames = (frames - means) * recorded
        spectra = frames @ self.basis.to(x)
        return spectra.unflatten(-1, (2, -1)).transpose(-1, -2)

    def _frames(self, x):
        """(B, T, win_length) as the windows' common parts, which a reshape cuts out."""
        if self.center:
            x = F.pad(x, (self.n_fft // 2,) * 2)
        outside = self.n_fft - self.win_length
        frames = (x.shape[1] - self.n_fft) // self.hop_length + 1
        part = math.gcd(self.hop_length, self.win_length)
        hop, parts = self.hop_length // part, self.win_length // part
        x = x[:, self._margin() : x.shape[1] - outside + self._margin()]
        x = x[:, : ((frames - 1) * hop + parts) * part].unflatten(1, (-1, part))
        last = (frames - 1) * hop + 1
        return torch.cat([x[:, k : k + last : hop] for k in range(parts)], dim=2)


def exportable(extractor: FeatureExtractor) -> FeatureExtractor:
    """A copy of an extractor that becomes a graph.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Not changed.

    Returns
    -------
    hyperconformer.model.features.FeatureExtractor
        Of the same output.

    Raises
    ------
    ValueError
        If its STFT cannot be exported.
    """
    extractor = copy.deepcopy(extractor).eval()
    extractor.features.compute_STFT = MatrixSTFT(extractor.features.compute_STFT)
    return extractor
