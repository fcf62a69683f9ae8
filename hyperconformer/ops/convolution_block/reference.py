"""The convolution block as its definition reads: each utterance alone."""

import torch
import torch.nn.functional as F


def convolution_block(x, lengths, weight, bias, gain, shift, geometry):
    """See :func:`hyperconformer.ops.convolution_block.convolution_block`."""
    shape = geometry.output_shape(x, weight)
    outputs = []
    for utterance, length in zip(x, lengths.tolist()):
        output = x.new_zeros(shape[1:])
        if length > 0:
            frames = _pad(utterance[:length].permute(2, 0, 1)[None], geometry)
            kernel = weight.permute(3, 2, 0, 1)
            y = F.conv2d(frames, kernel, bias, stride=geometry.stride)[0]
            y = y[:, : -(-length // geometry.stride[0])].permute(1, 2, 0)
            y = F.layer_norm(y, gain.shape, gain, shift, geometry.eps)
            y = F.leaky_relu(y, geometry.slope)
            output = torch.cat([y, output[len(y) :]])
        outputs.append(output)
    return torch.stack(outputs)


def _pad(x, geometry):
    """(1, C, T, F) frames of an utterance, with what is seen around them."""
    time_pad, bin_pad = geometry.time_pad, geometry.bin_pad
    x = F.pad(x, (bin_pad, bin_pad, 0, 0), mode="reflect")
    if geometry.reflects:
        return F.pad(x, (0, 0, time_pad, time_pad), mode="reflect")
    return F.pad(x, (0, 0, time_pad, -x.shape[2] % geometry.stride[0]))
