"""Our layers in the place of PyTorch's, in modules of SpeechBrain."""

from torch import nn

from hyperconformer.dropout import Dropout
from hyperconformer.linear import Linear


def replace_layers(module):
    """Put our Dropout and Linear wherever a module holds PyTorch's.

    Arguments
    ---------
    module : torch.nn.Module
        Changed in place; its parameters and their names are not.

    Example
    -------
    >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3))
    >>> replace_layers(layers)
    >>> type(layers[0]).__module__, layers[1].p
    ('hyperconformer.linear', 0.3)
    """
    for parent in module.modules():
        for name, child in parent.named_children():
            # A subclass may do something else.
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, child.inplace))
            elif type(child) is nn.Linear:
                setattr(parent, name, _with_parameters_of(child))


def _with_parameters_of(linear):
    """A Linear of ours that shares another one's parameters."""
    ours = Linear(linear.in_features, linear.out_features, device="meta")
    ours.weight, ours.bias = linear.weight, linear.bias
    return ours
