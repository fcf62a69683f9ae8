"""The convolution block of a whole batch, in torch's operations; and its parts.

A front end whose layers are no such block calls the parts one by one.
"""

import torch
import torch.nn.functional as F

from hyperconformer.core.masks import lengths_to_padding_mask
from hyperconformer.core.recording import is_recorded
from hyperconformer.ops.convolution import conv_nd


def convolution_block(x, lengths, weight, bias, gain, shift, geometry):
    """See :func:`hyperconformer.ops.convolution_block.convolution_block`."""
    if geometry.reflects:
        x, time_pads = reflect(x, lengths, geometry.time_pad)
    else:
        fill = -x.shape[1] % geometry.stride[0]
        x = F.pad(clear(x, lengths), (0, 0, 0, 0, geometry.time_pad, fill))
        time_pads = (0, 0)
    y = convolve(
        x,
        weight.permute(3, 2, 0, 1),
        bias,
        stride=geometry.stride,
        time_pads=time_pads,
        bin_pad=geometry.bin_pad,
    )
    y = F.layer_norm(y, gain.shape, gain, shift, geometry.eps)
    return F.leaky_relu(y, geometry.slope)


def convolve(
    x,
    weight,
    bias,
    *,
    stride,
    time_pads=(0, 0),
    bin_pad=0,
    dilation=(1, 1),
    groups=1,
    padding_mode="reflect",
):
    """Convolve frames over time and bins, channels last as they lie in memory.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, F, C).
    weight : torch.Tensor
        (C', C / groups, time taps, bin taps).
    bias : torch.Tensor or None
        (C',).
    stride, dilation : tuple of int
        Of time and of bins.
    time_pads : tuple of int
        Frames before the first and after the last.
    bin_pad : int
        Bins at either edge.
    groups, padding_mode
        As ``torch.nn.Conv2d``.

    Returns
    -------
    torch.Tensor
        (B, T', F', C').
    """
    x = x.permute(0, 3, 1, 2)
    x = F.pad(x, (bin_pad, bin_pad, *time_pads), mode=padding_mode)
    if max(weight.shape[2:]) == 1:
        # The same. With a stride, oneDNN 3.12 of torch 2.14 writes past the end of
        # memory in the backward pass of a kernel of 1 x 1 over channels-last frames.
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
    y = conv_nd(
        x,
        weight,
        bias,
        stride=stride,
        padding=(0, 0),
        dilation=dilation,
        groups=groups,
    )
    return y.permute(0, 2, 3, 1)


def clear(x, lengths):
    """Write zeros past each end of (B, T, F, C) frames."""
    if not _are_unknown(lengths) and (lengths == x.shape[1]).all():
        return x
    mask = lengths_to_padding_mask(lengths, x.shape[1])
    return x.masked_fill(mask[:, :, None, None], 0.0)


def reflect(x, lengths, width):
    """Reflect ``width`` frames at each utterance's end where padding follows it.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, F, C).
    lengths : torch.Tensor
        (B,) int64 real frames, more than ``width``.
    width : int
        Frames.

    Returns
    -------
    x : torch.Tensor
        The same, or ``width`` frames longer, so that there is room.
    time_pads : tuple of int
        Frames that are still to be reflected before the first and after the last.

    Raises
    ------
    ValueError
        If an utterance is too short.
    """
    if not _are_unknown(lengths) and lengths.min() <= width:
        raise ValueError(
            f"an utterance of {lengths.min().item()} frames is too short for the "
            f"convolutional front end, which needs more than {width} at every layer"
        )
    if _are_unknown(lengths) or (lengths < x.shape[1]).any():
        return _reflect_ends(x, lengths, width), (width, 0)
    return x, (width, width)


def _are_unknown(lengths):
    """Whether lengths decide nothing: of a recording, or without memory (meta)."""
    return is_recorded() or lengths.is_meta


def _reflect_ends(x, lengths, width):
    """Clear what lies past each end, but for ``width`` frames reflected there."""
    x = F.pad(x, (0, 0, 0, 0, 0, width))
    mask = lengths_to_padding_mask(lengths, x.shape[1])
    source = x = x.masked_fill(mask[:, :, None, None], 0.0)
    rows = torch.arange(x.shape[0], device=x.device)
    for step in range(width):
        mirrored = source[rows, lengths - 2 - step]
        x = x.index_put((rows, lengths + step), mirrored)
    return x
