"""Our layers in the place of PyTorch's, in modules of SpeechBrain."""

from torch import nn

from hyperconformer.nn.dropout import Dropout
from hyperconformer.nn.linear import Linear

OURS = {nn.Dropout: Dropout, nn.Linear: Linear}


def replace_layers(module):
    """Make every Dropout and Linear of PyTorch's in a module one of ours.

    Arguments
    ---------
    module : torch.nn.Module
        Changed in place: what the layers hold stays theirs, hooks included. Subclasses,
        which may do something else, are left alone.

    Example
    -------
    >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    >>> replace_layers(layers)
    >>> type(layers[0]).__module__, layers[1].p
    ('hyperconformer.nn.linear', 0.3)
    """
    for layer in module.modules():
        # Ours have no state of their own, so an instance can change its class.
        layer.__class__ = OURS.get(type(layer), type(layer))
