"""Layer normalisation under the names of SpeechBrain."""

from collections import OrderedDict

from torch import nn


def named_norm(d_model, eps=1e-5):
    """A LayerNorm whose parameters are called ``norm.*``, as SpeechBrain's are."""
    return nn.Sequential(OrderedDict(norm=nn.LayerNorm(d_model, eps=eps)))
