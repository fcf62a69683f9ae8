"""The Branchformer encoder with a pluggable token mixer.

"Branchformer: Parallel MLP-Attention Architectures to Capture Local and Global
Context for Speech Recognition and Understanding", arXiv:2207.02971. With HyperMixing
it is the HyperBranchformer.
"""

from collections import OrderedDict

import torch
from torch import nn

from hyperconformer.encoders.stack import EncoderStack, build_encoder_mixer
from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.linear import Linear
from hyperconformer.nn.normalization import named_norm
from hyperconformer.ops.convolution import conv_nd


class ConvolutionalGating(nn.Module):
    """Half of the channels, convolved over time, gate the other half; section 2.4.

    The convolution reflects each utterance at its own ends, as SpeechBrain reflects
    a single one.

    Arguments
    ---------
    width : int
        Channels that come in, even; half of them go out.
    kernel_size : int
        Taps of the depthwise convolution, odd.
    activation : type
        Activation class of the gate.
    dropout : float
        Dropout rate.
    use_linear_after_conv : bool
        Whether a Linear follows the convolution.

    Raises
    ------
    ValueError
        If ``width`` is odd or ``kernel_size`` even.
    """

    def __init__(
        self,
        width,
        kernel_size=31,
        activation=nn.Identity,
        dropout=0.0,
        use_linear_after_conv=False,
    ):
        super().__init__()
        if width % 2 or not kernel_size % 2:
            raise ValueError(
                "the gating needs an even width and an odd kernel size, "
                f"got {width} and {kernel_size}"
            )
        channels = width // 2
        self.pad = kernel_size // 2
        self.norm = named_norm(channels)
        conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        # A gate that begins almost open, as the paper has it.
        nn.init.normal_(conv.weight, std=1e-6)
        nn.init.ones_(conv.bias)
        self.conv = nn.Sequential(OrderedDict(conv=conv))
        if use_linear_after_conv:
            self.linear = Linear(channels, channels)
            nn.init.normal_(self.linear.weight, std=1e-6)
            nn.init.ones_(self.linear.bias)
        self.use_linear_after_conv = use_linear_after_conv
        self.activation = activation()
        self.dropout = Dropout(dropout)

    def forward(self, x, padding_mask=None):
        """Gate.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, C) frames.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding.

        Returns
        -------
        torch.Tensor
            (B, T, C / 2).
        """
        kept, gate = x.chunk(2, dim=-1)
        gate = reflect_pad(self.norm(gate), self.pad, padding_mask)
        conv = self.conv.conv
        taps = {"stride": [1], "padding": [0], "dilation": [1], "groups": conv.groups}
        gate = conv_nd(gate.mT, conv.weight, conv.bias, **taps).mT
        if self.use_linear_after_conv:
            gate = self.linear(gate)
        return self.dropout(kept * self.activation(gate))


def reflect_pad(x, width, padding_mask=None):
    """Pad time by reflecting each utterance at its own ends, however short it is.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, C) frames.
    width : int
        Frames to add at both ends.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding.

    Returns
    -------
    torch.Tensor
        (B, T + 2 width, C).

    Example
    -------
    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> mask = torch.tensor([[False, False, False, True]])
    >>> reflect_pad(x, 2, mask).flatten().tolist()
    [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    """
    batch, frames, channels = x.shape
    index = torch.arange(-width, frames + width, device=x.device).unsqueeze(0)
    last = index.new_full((batch, 1), frames - 1)
    if padding_mask is not None:
        last = (~padding_mask).sum(dim=1, keepdim=True) - 1
    # A walk to and fro between the first and the last frame.
    period = (2 * last).clamp(min=1)
    index = index.remainder(period)
    index = torch.minimum(index, period - index).clamp(max=last)
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, channels))


class BranchformerEncoderLayer(nn.Module):
    """Token mixer and convolutional gating side by side, merged by a Linear.

    Arguments
    ---------
    d_model : int
        Width D of the frames; HyperMixing's hypernet size is 4 D, as in SpeechBrain.
    nhead, kernel_size, activation, dropout, attention_type, mixer_options
        As :class:`~hyperconformer.encoders.conformer.ConformerEncoderLayer`.
    csgu_linear_units : int
        Width of the gating branch.
    gate_activation : type
        Activation class of the gate.
    use_linear_after_conv : bool
        Whether a Linear follows the gate's convolution.

    Raises
    ------
    ValueError
        If the mixer or an option is unknown.

    Example
    -------
    >>> layer = BranchformerEncoderLayer(16, nhead=2, csgu_linear_units=32)
    >>> layer(torch.rand(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        d_model,
        nhead,
        kernel_size=31,
        activation=nn.GELU,
        dropout=0.0,
        attention_type="hypermixing",
        mixer_options=None,
        csgu_linear_units=3072,
        gate_activation=nn.Identity,
        use_linear_after_conv=False,
    ):
        super().__init__()
        self.mha_layer = build_encoder_mixer(
            attention_type,
            d_model=d_model,
            num_heads=nhead,
            d_ffn=4 * d_model,
            dropout=dropout,
            causal=False,
            options=mixer_options,
        )
        self.convolution_branch = nn.ModuleDict(
            {
                "pre_channel_proj": Linear(d_model, csgu_linear_units),
                "activation": activation(),
                "csgu": ConvolutionalGating(
                    csgu_linear_units,
                    kernel_size,
                    gate_activation,
                    dropout,
                    use_linear_after_conv,
                ),
                "post_channel_proj": Linear(csgu_linear_units // 2, d_model),
            }
        )
        self.merge_proj = Linear(2 * d_model, d_model)
        self.norm_mhsa = named_norm(d_model)
        self.norm_conv = named_norm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x, padding_mask=None, chunk=None):
        """Encode one layer, (B, T, D) to (B, T, D); see :meth:`TokenMixer.forward`.

        Raises
        ------
        ValueError
            If a chunk rule is given: the gating's convolution looks ahead.
        """
        if chunk is not None:
            raise ValueError("the Branchformer cannot honour a chunk rule")
        mixed, _ = self.mha_layer(self.norm_mhsa(x), padding_mask=padding_mask)
        branch = self.convolution_branch
        gated = branch["activation"](branch["pre_channel_proj"](self.norm_conv(x)))
        gated = branch["post_channel_proj"](branch["csgu"](gated, padding_mask))
        both = torch.cat([self.dropout(mixed), self.dropout(gated)], dim=-1)
        return x + self.dropout(self.merge_proj(both))


class BranchformerEncoder(EncoderStack):
    """A stack of :class:`BranchformerEncoderLayer` and a final LayerNorm.

    It takes the arguments of :class:`EncoderStack`, and as options those of
    :class:`BranchformerEncoderLayer`.

    Example
    -------
    >>> encoder = BranchformerEncoder(2, 16, nhead=2, csgu_linear_units=32)
    >>> encoder(torch.rand(2, 9, 16))[0].shape
    torch.Size([2, 9, 16])
    """

    layer_class = BranchformerEncoderLayer
    requires = {"causal": (False, "the Branchformer looks ahead")}
