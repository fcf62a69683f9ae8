"""Names of token mixers, and the one function that builds them.

>>> from hyperconformer.mixers.registry import build_mixer, list_mixers
>>> "hypermixing" in list_mixers()
True
"""

import collections.abc
import importlib
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from hyperconformer.core.annotations import check_type, fits
from hyperconformer.core.messages import quoted, unknown
from hyperconformer.mixers.base import TokenMixer

MixerClass = TypeVar("MixerClass", bound=type[TokenMixer])

# Names to "module:class", imported when asked for: the SpeechBrain-made ones live
# above this module, and a mixer that nobody uses costs nothing at import.
_MIXERS = {
    "RelPosMHAXL": "hyperconformer.mixers.attention:RelPosMHAXL",
    "RoPEMHA": "hyperconformer.mixers.attention:RoPEMHA",
    "gated_deltanet": "hyperconformer.mixers.gated_deltanet:GatedDeltaNet",
    "hyperglu": "hyperconformer.mixers.hyperglu:HyperGLUMixer",
    "hypermixing": "hyperconformer.mixers.hypermixing:MultiHeadHyperMixing",
    "hypermlp": "hyperconformer.mixers.hyperglu:HyperMLPMixer",
    "linear_attention": "hyperconformer.mixers.linear_attention:LinearAttention",
    "mixture_of_attention": (
        "hyperconformer.mixers.mixture_of_attention:MixtureOfAttentionMixer"
    ),
    "polynomial_mixing": "hyperconformer.mixers.polynomial_mixing:PolynomialMixing",
    "regularMHA": "hyperconformer.mixers.attention:RegularMHA",
    "summary_mixing": "hyperconformer.mixers.summary_mixing:SummaryMixing",
    "windowed_summary_mixing": (
        "hyperconformer.mixers.windowed_summary_mixing:WindowedSummaryMixing"
    ),
}


def register_mixer(name: str) -> Callable[[MixerClass], MixerClass]:
    """Class decorator that makes a :class:`TokenMixer` selectable by name.

    Arguments
    ---------
    name : str
        The name, as it will stand after ``attention_type:`` in YAML.

    Returns
    -------
    callable
        The decorator; it returns the class unchanged.

    Raises
    ------
    ValueError
        If the name is taken, or the class is no TokenMixer.
    """

    def decorate(cls):
        if name in _MIXERS:
            raise ValueError(f"mixer {name!r} is already registered: {_MIXERS[name]}")
        if not (inspect.isclass(cls) and issubclass(cls, TokenMixer)):
            raise ValueError(f"mixer {name!r} must be a TokenMixer class, got {cls!r}")
        _MIXERS[name] = cls
        return cls

    return decorate


def list_mixers() -> list[str]:
    """The names that :func:`build_mixer` knows, sorted.

    Returns
    -------
    list of str
    """
    return sorted(_MIXERS)


def mixer_class(mixer):
    """The class behind a name; a class is returned as it is.

    Arguments
    ---------
    mixer : str or type
        A registered name, or a TokenMixer subclass (``!name:`` in YAML).

    Returns
    -------
    type

    Raises
    ------
    ValueError
        If the name is unknown or the class is no TokenMixer.
    """
    if inspect.isclass(mixer):
        if not issubclass(mixer, TokenMixer):
            raise ValueError(f"a mixer must be a TokenMixer class, got {quoted(mixer)}")
        return mixer
    if not isinstance(mixer, str) or mixer not in _MIXERS:
        raise ValueError(unknown("mixer", mixer, list_mixers()))
    if isinstance(_MIXERS[mixer], str):
        module, _, cls = _MIXERS[mixer].partition(":")
        _MIXERS[mixer] = getattr(importlib.import_module(module), cls)
    return _MIXERS[mixer]


def mixer_label(mixer: str | type[TokenMixer]) -> str:
    """The name of a mixer, or of its class."""
    return mixer if isinstance(mixer, str) else mixer.__name__


def mixer_options(mixer):
    """The keyword options of a mixer beside ``d_model`` and ``num_heads``.

    Arguments
    ---------
    mixer : str or type
        A registered name or a TokenMixer subclass.

    Returns
    -------
    dict of str to inspect.Parameter
    """
    parameters = dict(inspect.signature(mixer_class(mixer).__init__).parameters)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if name not in ("self", "d_model", "num_heads")
    }


def check_options(mixer, options):
    """Refuse options that a mixer does not know, and values of another type.

    Arguments
    ---------
    mixer : str or type
        A registered name or a TokenMixer subclass.
    options : dict
        Its options beside ``d_model`` and ``num_heads``. What a value must be, the
        annotations of the mixer's constructor say; without one, anything passes.

    Raises
    ------
    ValueError
        If the mixer or an option is unknown, or a value is of another type.

    Example
    -------
    >>> check_options("hypermixing", {"tied": "yes"})
    Traceback (most recent call last):
    ...
    ValueError: option 'tied' of mixer 'hypermixing' must be bool, got 'yes' (str)
    """
    cls, label = mixer_class(mixer), mixer_label(mixer)
    if not isinstance(options, collections.abc.Mapping):
        kind = type(options).__name__
        raise ValueError(
            f"options of mixer {label!r} must be names and values, "
            f"got {quoted(options)} ({kind})"
        )
    known = mixer_options(mixer)
    try:
        wanted = typing.get_type_hints(cls.__init__)
    except NameError:  # annotations of names that exist for type checkers only
        wanted = {}
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                unknown(f"option of mixer {label!r}", option, sorted(known))
            )
        if option in wanted:
            check_type(f"option {option!r} of mixer {label!r}", value, wanted[option])


def build_mixer(
    mixer: str | type[TokenMixer], *, d_model: int, num_heads: int, **options: Any
) -> TokenMixer:
    """Build a token mixer.

    Arguments
    ---------
    mixer : str or type
        A registered name or a TokenMixer subclass.
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads.
    **options
        The mixer's own options; each must be one that it knows.

    Returns
    -------
    TokenMixer

    Raises
    ------
    ValueError
        If the name or an option is unknown (the message lists the known ones), or a
        value is of another type than the mixer's constructor says.

    Example
    -------
    >>> import torch
    >>> mixer = build_mixer("hypermixing", d_model=16, num_heads=2, hypernet_size=32)
    >>> y, state = mixer(torch.randn(3, 7, 16))
    >>> y.shape
    torch.Size([3, 7, 16])
    """
    check_options(mixer, options)
    for name, size in (("d_model", d_model), ("num_heads", num_heads)):
        if not (fits(size, int) and size >= 1):
            raise ValueError(
                f"{name} must be a whole number from 1 on, got {quoted(size)}"
            )
    return mixer_class(mixer)(d_model=d_model, num_heads=num_heads, **options)


def mixers_table():
    """What each registered mixer is and can do, as a Markdown table.

    Returns
    -------
    str
    """
    rows = [
        "| mixer | paper | cost in frames T | causal | chunks | streams | cross "
        "| parameters at D=256, 8 heads |",
        "|---|---|---|---|---|---|---|---:|",
    ]
    for name in list_mixers():
        cls, options = mixer_class(name), mixer_options(name)
        forms = [build_mixer(name, d_model=256, num_heads=8)]
        if "causal" in options:
            causal = {"causal": not forms[0].causal}
            forms.append(build_mixer(name, d_model=256, num_heads=8, **causal))

        def any_form(attribute, forms=forms):
            return "yes" if any(getattr(form, attribute) for form in forms) else "no"

        count = sum(parameter.numel() for parameter in forms[0].parameters())
        cells = [
            f"`{name}`",
            cls.paper,
            cls.cost.replace("*", "x"),
            any_form("causal"),
            any_form("chunkable"),
            any_form("streamable"),
            f"`{cls.cross}`" if cls.cross else "no",
            f"{count:,}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"
