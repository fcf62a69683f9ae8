"""Which mixer each layer of an encoder has, from what the user's settings say."""

import collections.abc
import contextlib
from collections.abc import Iterator
from typing import Any

from hyperconformer.core.annotations import fits
from hyperconformer.core.messages import quoted, unknown
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.mixers.registry import list_mixers, mixer_class, mixer_label

Mixer = str | type[TokenMixer]
MixerSetting = Mixer | list[Mixer] | dict[str, Any]
OptionsSetting = dict[str, Any] | list[dict[str, Any] | None] | None


def layer_mixers(
    attention_type: MixerSetting, mixer_options: OptionsSetting, num_layers: int
) -> list[tuple[Mixer, dict[str, Any]]]:
    """The mixer of each layer, and its options.

    Arguments
    ---------
    attention_type : str, type, list or dict
        One of

        - a registered mixer or a TokenMixer class: every layer's;
        - a list of these, one for each layer;
        - ``{"from": A, "last": B, "every": n}``: the last layer has B, and so has every
          n-th layer counted back from it; the others have A. Without ``every`` only the
          last layer has B.
    mixer_options : dict or list, optional
        A list holds the options of each layer, None for none. In a dict, an entry that
        bears the name of a mixer holds options of the layers with that mixer; any other
        entry is an option of every layer, below those.
    num_layers : int
        Layers of the encoder.

    Returns
    -------
    list of (str or type, dict)
        One for each layer, the first first. The options are not checked.

    Raises
    ------
    ValueError
        If a name is unknown, a list is too long or too short, or a mapping is none of
        these.

    Example
    -------
    >>> hybrid = {"from": "hypermixing", "last": "RoPEMHA", "every": 2}
    >>> for mixer, options in layer_mixers(hybrid, {"hypermixing": {"tied": True}}, 4):
    ...     print(mixer, options)
    hypermixing {'tied': True}
    RoPEMHA {}
    hypermixing {'tied': True}
    RoPEMHA {}
    """
    if isinstance(attention_type, collections.abc.Mapping):
        mixers = _alternating(attention_type, num_layers)
    elif isinstance(attention_type, (list, tuple)):
        mixers = list(attention_type)
        _check_length("attention_type", "mixers", mixers, num_layers)
    else:
        mixers = [attention_type] * num_layers
    for index, mixer in enumerate(mixers):
        with naming_layer(index, mixers):
            mixer_class(mixer)
    if isinstance(mixer_options, (list, tuple)):
        _check_length("mixer_options", "entries", mixer_options, num_layers)
        each = [{} if options is None else options for options in mixer_options]
    elif isinstance(mixer_options, collections.abc.Mapping):
        each = _options_by_name(mixers, mixer_options)
    else:  # what is no mapping, the check of the options refuses
        each = [{} if mixer_options is None else mixer_options] * num_layers
    return list(zip(mixers, each))


@contextlib.contextmanager
def naming_layer(index: int, chosen: list) -> Iterator[None]:
    """Say of which layer a ValueError speaks, where the layers differ.

    Arguments
    ---------
    index : int
        The layer, from 0.
    chosen : list
        What each layer has, as of :func:`layer_mixers`, or a part of it.
    """
    try:
        yield
    except ValueError as error:
        if all(one == chosen[0] for one in chosen):
            raise
        raise ValueError(
            f"encoder layer {index + 1} of {len(chosen)}: {error}"
        ) from error


def _alternating(rule, num_layers):
    for key in rule:
        if key not in ("from", "last", "every"):
            known = ["from", "last", "every"]
            raise ValueError(f"attention_type: {unknown('key', key, known)}")
    if not {"from", "last"} <= rule.keys():
        raise ValueError(
            "attention_type needs `last`, the mixer of the last layer, and `from`, "
            f"that of the others, got {quoted(dict(rule))}"
        )
    every = rule.get("every", num_layers)
    if not (fits(every, int) and every >= 1):
        raise ValueError(
            "attention_type: `every` must be a whole number of layers from 1 on, got "
            f"{quoted(every)}"
        )
    return [
        rule["last"] if (num_layers - 1 - index) % every == 0 else rule["from"]
        for index in range(num_layers)
    ]


def _check_length(name, what, values, num_layers):
    if len(values) != num_layers:
        raise ValueError(
            f"{name} holds {len(values)} {what}, but the encoder has {num_layers} "
            f"layers: {quoted(list(values))}"
        )


def _options_by_name(mixers, options):
    labels = [mixer_label(mixer) for mixer in mixers]
    for key, value in options.items():
        if key in labels and not isinstance(value, collections.abc.Mapping):
            raise ValueError(
                f"options of mixer {key!r} must be names and values, got "
                f"{quoted(value)} ({type(value).__name__})"
            )
        if key in list_mixers() and key not in labels:
            raise ValueError(
                f"mixer_options holds options of {key!r}, which no layer has; the "
                f"layers have: {', '.join(sorted(set(labels)))}"
            )
    shared = {key: value for key, value in options.items() if key not in labels}
    return [{**shared, **options.get(label, {})} for label in labels]
