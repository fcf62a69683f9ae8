"""The Transformer encoder with a pluggable token mixer.

With HyperMixing it is the HyperMixer, arXiv:2203.03691.
"""

from torch import nn

from hyperconformer.encoders.stack import EncoderStack, build_encoder_mixer
from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.feed_forward import FeedForward
from hyperconformer.nn.normalization import named_norm


class TransformerEncoderLayer(nn.Module):
    """Token mixer and feed-forward, each with a residual and a LayerNorm.

    Arguments
    ---------
    d_model, d_ffn, nhead, activation, dropout, causal, attention_type, mixer_options
        As :class:`~hyperconformer.encoders.conformer.ConformerEncoderLayer`.
    normalize_before : bool
        LayerNorm before each part (True) or after its residual.

    Raises
    ------
    ValueError
        As :class:`~hyperconformer.encoders.conformer.ConformerEncoderLayer`.

    Example
    -------
    >>> import torch
    >>> layer = TransformerEncoderLayer(16, 32, nhead=2)
    >>> layer(torch.rand(2, 9, 16)).shape
    torch.Size([2, 9, 16])
    """

    def __init__(
        self,
        d_model,
        d_ffn,
        nhead,
        activation=nn.ReLU,
        dropout=0.0,
        normalize_before=True,
        causal=False,
        attention_type="hypermixing",
        mixer_options=None,
    ):
        super().__init__()
        # SpeechBrain's name, whatever mixes.
        self.self_att = build_encoder_mixer(
            attention_type,
            d_model=d_model,
            num_heads=nhead,
            d_ffn=d_ffn,
            dropout=dropout,
            causal=causal,
            options=mixer_options,
        )
        self.pos_ffn = FeedForward(d_model, d_ffn, activation, dropout)
        self.norm1 = named_norm(d_model, eps=1e-6)
        self.norm2 = named_norm(d_model, eps=1e-6)
        self.dropout = Dropout(dropout)
        self.normalize_before = normalize_before

    def forward(self, x, padding_mask=None, chunk=None):
        """Encode one layer, (B, T, D) to (B, T, D); see :meth:`TokenMixer.forward`."""

        def mix(frames):
            return self.self_att(frames, padding_mask=padding_mask, chunk=chunk)[0]

        for part, norm in ((mix, self.norm1), (self.pos_ffn, self.norm2)):
            if self.normalize_before:
                x = x + self.dropout(part(norm(x)))
            else:
                x = norm(x + self.dropout(part(x)))
        return x


class TransformerEncoder(EncoderStack):
    """A stack of :class:`TransformerEncoderLayer` and a final LayerNorm.

    It takes the arguments of :class:`EncoderStack`, and as options those of
    :class:`TransformerEncoderLayer`.

    Example
    -------
    >>> import torch
    >>> encoder = TransformerEncoder(2, 16, d_ffn=32, nhead=2)
    >>> y, hidden = encoder(torch.rand(2, 9, 16))
    >>> y.shape, len(hidden)
    (torch.Size([2, 9, 16]), 3)
    """

    layer_class = TransformerEncoderLayer
