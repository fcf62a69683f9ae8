"""From samples to encoder frames: features, normalisation, strided convolutions.

SpeechBrain's own parts, made to respect the length of each utterance, so that a
batch gives what each utterance gives alone.
"""

import torch
import torch.nn.functional as F
from speechbrain.lobes.models import convolution
from torch import nn

from hyperconformer.masks import lengths_to_padding_mask, relative_to_frames


class ConvolutionFrontEnd(convolution.ConvolutionFrontEnd):
    """SpeechBrain's convolutional front end, with lengths.

    Same constructor, parameters and output for one utterance. SpeechBrain pads a
    batch by reflection at its common end, so that each shorter utterance sees its
    padding; here each utterance is reflected at its own end.

    Arguments
    ---------
    *args, **kwargs
        As ``speechbrain.lobes.models.convolution.ConvolutionFrontEnd``, with
        two-dimensional convolutions and ``padding="same"``.

    Raises
    ------
    ValueError
        If ``padding`` is not "same".

    Example
    -------
    >>> cnn = ConvolutionFrontEnd(
    ...     input_shape=(8, 10, 80), num_blocks=2, num_layers_per_block=1,
    ...     out_channels=(64, 32), kernel_sizes=(3, 3), strides=(2, 2),
    ...     residuals=(False, False),
    ... )
    >>> y, lengths = cnn(torch.rand(2, 101, 80), torch.tensor([101, 60]))
    >>> y.shape, lengths.tolist()
    (torch.Size([2, 26, 20, 32]), [26, 15])
    """

    def __init__(self, *args, **kwargs):
        if kwargs.get("padding", "same") != "same":
            raise ValueError(
                f"this front end needs padding='same', got {kwargs['padding']!r}"
            )
        super().__init__(*args, **kwargs)

    def forward(self, x, lengths=None):
        """Convolve and subsample.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, F) features; padding may hold anything.
        lengths : torch.Tensor, optional
            (B,) int64 frames of each utterance.

        Returns
        -------
        y : torch.Tensor
            (B, T', F', C).
        lengths : torch.Tensor
            (B,) int64 frames of each output; only where lengths were given.

        Raises
        ------
        ValueError
            If an utterance is too short for a kernel to be reflected at its end.
        """
        given = lengths is not None
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[1], device=x.device)
        for block in self.children():
            x, lengths = _convolve_block(block, x, lengths)
        return (x, lengths) if given else x


def _convolve_block(block, x, lengths):
    y, y_lengths = x, lengths
    for layer in block.convs.children():
        if isinstance(layer, convolution.Conv2d):
            y, y_lengths = _convolve(layer, y, y_lengths)
        else:
            y = layer(y)
    if block.reduce_conv is not None:
        shortcut = x
        for layer in block.reduce_conv.children():
            if isinstance(layer, convolution.Conv2d):
                shortcut, _ = _convolve(layer, shortcut, lengths)
            else:
                shortcut = layer(shortcut)
        y = block.drop(y + shortcut)
    return y, y_lengths


def _convolve(layer, x, lengths):
    """One SpeechBrain Conv2d on (B, T, F[, C]), channels last as they lie in memory."""
    if x.dim() == 3:
        x = x.unsqueeze(-1)
    # SpeechBrain transposes to (B, C, F, T): its last axis is time.
    freq_pad, time_pad = (
        dilation * (size - 1) // 2
        for dilation, size in zip(layer.dilation, layer.kernel_size)
    )
    if lengths.min() <= time_pad:
        raise ValueError(
            f"an utterance of {lengths.min().item()} frames is too short for the "
            f"convolutional front end, which needs more than {time_pad} at every layer"
        )
    x = _reflect_ends(x, lengths, time_pad)
    x = x.permute(0, 3, 1, 2)
    x = F.pad(x, (freq_pad, freq_pad, time_pad, time_pad), mode=layer.padding_mode)
    y = F.conv2d(
        x,
        layer.conv.weight.transpose(2, 3),
        layer.conv.bias,
        stride=layer.stride[::-1],
        dilation=layer.dilation[::-1],
        groups=layer.conv.groups,
    )
    stride = layer.stride[-1]
    return y.permute(0, 2, 3, 1), (lengths - 1) // stride + 1


def _reflect_ends(x, lengths, width):
    """Clear what lies past each end, but for ``width`` frames reflected there."""
    frames = x.shape[1]
    if (lengths == frames).all():
        return x
    mask = lengths_to_padding_mask(lengths, frames)
    x = x.masked_fill(mask[:, :, None, None], 0.0)
    source = x
    for step in range(width):
        rows = torch.nonzero(lengths + step < frames).squeeze(1)
        mirrored = source[rows, lengths[rows] - 2 - step]
        x = x.index_put((rows, lengths[rows] + step), mirrored)
    return x


def _normalize_each(features, lengths):
    """Bring each utterance's real frames to mean 0 and deviation 1."""
    padding = lengths_to_padding_mask(lengths, features.shape[1]).unsqueeze(-1)
    count = lengths[:, None, None]
    mean = features.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
    features = features - mean
    squares = features.masked_fill(padding, 0.0).square().sum(1, keepdim=True)
    # A feature that never moves stays at 0 instead of becoming noise.
    return features / (squares / count).sqrt().clamp(min=1e-3)


class FeatureExtractor(nn.Module):
    """Samples to normalised features, with exact lengths.

    The mean and deviation of each feature are those of the utterance, or they are
    measured once on the training set (:meth:`fit`) and are buffers. SpeechBrain's
    ``InputNormalization`` instead drifts through the first epochs and keeps its
    statistics out of the state dict, so that a model's weights alone would not be
    the model.

    Arguments
    ---------
    features : torch.nn.Module
        ``speechbrain.lobes.features.Fbank``, or another on a centred STFT.
    num_features : int
        Features a frame.
    normalization : str
        ``"global"``, by the training set's statistics (works while streaming), or
        ``"utterance"``, by each utterance's own (forgives speakers and channels).

    Raises
    ------
    ValueError
        If the normalization is unknown.

    Example
    -------
    >>> from speechbrain.lobes.features import Fbank
    >>> extractor = FeatureExtractor(Fbank(n_mels=80), 80)
    >>> x, lengths = extractor(torch.randn(2, 16000), torch.tensor([1.0, 0.5]))
    >>> x.shape, lengths.tolist()
    (torch.Size([2, 101, 80]), [101, 51])
    """

    def __init__(self, features, num_features, normalization="global"):
        super().__init__()
        if normalization not in ("global", "utterance"):
            raise ValueError(
                f"normalization must be 'global' or 'utterance', got {normalization!r}"
            )
        self.features = features
        self.normalization = normalization
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    def forward(self, wavs, wav_lens=None):
        """Extract and normalise.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples, zero past each end.
        wav_lens : torch.Tensor, optional
            (B,) relative lengths in (0, 1]; None = no padding.

        Returns
        -------
        features : torch.Tensor
            (B, T, F).
        lengths : torch.Tensor
            (B,) int64 frames, as many as each utterance alone would have.
        """
        if wav_lens is None:
            wav_lens = torch.ones(wavs.shape[0], device=wavs.device)
        samples = relative_to_frames(wav_lens, wavs.shape[1])
        features = self.features(wavs)
        # A centred STFT has a frame at every multiple of the hop.
        hop = self.features.compute_STFT.hop_length
        lengths = (samples // hop + 1).clamp(max=features.shape[1])
        if self.normalization == "global":
            return (features - self.mean) / self.std, lengths
        return _normalize_each(features, lengths), lengths

    @torch.no_grad()
    def fit(self, utterances):
        """Measure mean and deviation of each feature.

        Arguments
        ---------
        utterances : iterable of torch.Tensor
            (N,) samples each.

        Raises
        ------
        ValueError
            If there are no utterances.
        """
        count, total, squares = 0, 0.0, 0.0
        for samples in utterances:
            frames = self.features(samples.unsqueeze(0).to(self.mean.device))[
                0
            ].double()
            count += len(frames)
            total = total + frames.sum(dim=0)
            squares = squares + frames.square().sum(dim=0)
        if count == 0:
            raise ValueError("no utterance to measure the features on")
        mean = total / count
        self.mean.copy_(mean)
        variance = (squares / count - mean.square()).clamp(min=1e-10)
        self.std.copy_(variance.sqrt())
