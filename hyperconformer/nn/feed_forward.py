"""The feed-forward step of an encoder layer."""

from torch import nn

from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.linear import Linear


class FeedForward(nn.Module):
    """Position-wise feed-forward: Linear, activation, dropout, Linear.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    d_ffn : int
        Width of the hidden layer.
    activation : type
        Activation class.
    dropout : float
        Dropout rate of the hidden layer.
    """

    def __init__(self, d_model, d_ffn, activation=nn.SiLU, dropout=0.0):
        super().__init__()
        self.ffn = nn.Sequential(
            Linear(d_model, d_ffn),
            activation(),
            Dropout(dropout),
            Linear(d_ffn, d_model),
        )

    def forward(self, x):
        """(B, T, D) in, (B, T, D) out."""
        widen, activation, dropout, narrow = self.ffn
        if type(dropout) is not Dropout:  # Somebody has replaced it.
            return self.ffn(x)
        return narrow(dropout.after(activation, widen(x)))
