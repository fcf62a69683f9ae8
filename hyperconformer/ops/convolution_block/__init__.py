"""A convolution over time and frequency, normalised and rectified, in one operator.

The block of a convolutional front end (Conformer, arXiv:2005.08100, section 2.1) as
SpeechBrain builds it: convolution, layer normalisation (arXiv:1607.06450), leaky ReLU.
On a CPU its parts cost more in memory than in arithmetic, and each utterance of a batch
is to be padded at its own end.

Three paths compute the same: ``reference``, each utterance alone; ``torch``, a batch in
torch's operations; ``cpp``, kernels for a CPU.
"""

from typing import NamedTuple

from hyperconformer.ops.backend import takes_kernels
from hyperconformer.ops.convolution_block import cpp_path, torch_path


class Geometry(NamedTuple):
    """What a block is, but for its parameters.

    Arguments
    ---------
    stride : tuple of int
        Input frames and bins to an output one.
    time_pad : int
        Frames before the first that the first output sees.
    bin_pad : int
        The same of bins; at either edge bins are reflected.
    reflects : bool
        Whether an utterance is reflected at its ends, or followed and preceded by
        zeros.
    eps : float
        Added to the variance.
    slope : float
        The rectifier's, below 0.
    """

    stride: tuple[int, int]
    time_pad: int
    bin_pad: int
    reflects: bool
    eps: float
    slope: float

    def output_shape(self, x, weight):
        """(B, T', F', C') for (B, T, F, C) frames and a kernel."""
        frames = -(-x.shape[1] // self.stride[0])
        bins = (x.shape[2] + 2 * self.bin_pad - weight.shape[1]) // self.stride[1] + 1
        return x.shape[0], frames, bins, weight.shape[3]


def convolution_block(x, lengths, weight, bias, gain, shift, geometry):
    """Convolve frames, normalise and rectify each.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, F, C) frames; padding may hold anything.
    lengths : torch.Tensor
        (B,) int64 real frames of each utterance; where it is reflected, more than
        ``geometry.time_pad``.
    weight : torch.Tensor
        (time taps, bin taps, C, C'); where an utterance is reflected, 2 time_pad + 1
        time taps.
    bias : torch.Tensor or None
        (C',).
    gain, shift : torch.Tensor
        (F', C') of the normalisation.
    geometry : Geometry
        Strides, padding and the rest.

    Returns
    -------
    torch.Tensor
        (B, T', F', C') with T' = ceil(T / stride). What stands past each end means
        nothing.

    Raises
    ------
    ValueError
        If an utterance is too short to be reflected.
    """
    arguments = x, lengths, weight, bias, gain, shift, geometry
    if takes_kernels(lambda: cpp_path.unsupported_reason(*arguments)):
        return cpp_path.convolution_block(*arguments)
    return torch_path.convolution_block(*arguments)
