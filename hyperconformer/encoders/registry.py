"""Names of encoders, and the one function that builds them."""

import inspect
from typing import Any

from hyperconformer.core.messages import unknown
from hyperconformer.encoders.branchformer import BranchformerEncoder
from hyperconformer.encoders.conformer import ConformerEncoder
from hyperconformer.encoders.stack import EncoderStack
from hyperconformer.encoders.transformer import TransformerEncoder

# What `encoder_module` may say. A new encoder is one more line.
ENCODERS: dict[str, type[EncoderStack]] = {
    "branchformer": BranchformerEncoder,
    "conformer": ConformerEncoder,
    "transformer": TransformerEncoder,
}


def encoder_class(name: str, **options: Any) -> type[EncoderStack]:
    """Return the encoder of a name.

    Arguments
    ---------
    name : str
        A key of :data:`ENCODERS`.
    **options
        Options of the model.

    Raises
    ------
    ValueError
        If the name is unknown, or an option does not suit the encoder.

    Example
    -------
    >>> encoder_class("branchformer", causal=True)
    Traceback (most recent call last):
    ...
    ValueError: the Branchformer looks ahead: it needs causal=False, got True
    """
    if not isinstance(name, str) or name not in ENCODERS:
        raise ValueError(unknown("encoder_module", name, sorted(ENCODERS)))
    encoder = ENCODERS[name]
    for option, (value, reason) in encoder.requires.items():
        if options.get(option, value) != value:
            raise ValueError(
                f"{reason}: it needs {option}={value}, got {options[option]}"
            )
    return encoder


def build_encoder(
    encoder: type[EncoderStack], num_layers: int, d_model: int, **offered: Any
) -> EncoderStack:
    """Build an encoder from the options of a model that suits every encoder.

    Arguments
    ---------
    encoder : type
        From :func:`encoder_class`.
    num_layers : int
        Number of layers.
    d_model : int
        Width D of the frames.
    **offered
        Options; those that the encoder's layers do not know are left out.
    """
    known = {"layerdrop_prob", *inspect.signature(encoder.layer_class).parameters}
    options = {name: value for name, value in offered.items() if name in known}
    return encoder(num_layers, d_model, **options)
