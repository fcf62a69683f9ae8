"""Names of token mixers, and the one function that builds them.

>>> from hyperconformer.registry import build_mixer, list_mixers
>>> "hypermixing" in list_mixers()
True
"""

import difflib
import importlib
import inspect

from hyperconformer.mixers.base import TokenMixer

# Names to "module:class", imported when asked for: the SpeechBrain-made ones live
# above this module, and a mixer that nobody uses costs nothing at import.
_MIXERS = {
    "RelPosMHAXL": "hyperconformer.integration.attention:RelPosMHAXL",
    "RoPEMHA": "hyperconformer.integration.attention:RoPEMHA",
    "hyperglu": "hyperconformer.mixers.hyperglu:HyperGLUMixer",
    "hypermixing": "hyperconformer.mixers.hypermixing:MultiHeadHyperMixing",
    "hypermlp": "hyperconformer.mixers.hyperglu:HyperMLPMixer",
    "linear_attention": "hyperconformer.mixers.linear_attention:LinearAttention",
    "mixture_of_attention": (
        "hyperconformer.mixers.mixture_of_attention:MixtureOfAttentionMixer"
    ),
    "regularMHA": "hyperconformer.integration.attention:RegularMHA",
    "summary_mixing": "hyperconformer.mixers.summary_mixing:SummaryMixing",
}


def register_mixer(name):
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


def list_mixers():
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
            raise ValueError(f"a mixer must be a TokenMixer class, got {mixer!r}")
        return mixer
    if mixer not in _MIXERS:
        raise ValueError(unknown("mixer", mixer, list_mixers()))
    if isinstance(_MIXERS[mixer], str):
        module, _, cls = _MIXERS[mixer].partition(":")
        _MIXERS[mixer] = getattr(importlib.import_module(module), cls)
    return _MIXERS[mixer]


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


def build_mixer(mixer, *, d_model, num_heads, **options):
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
        If the name or an option is unknown; the message lists the known ones.

    Example
    -------
    >>> import torch
    >>> mixer = build_mixer("hypermixing", d_model=16, num_heads=2, hypernet_size=32)
    >>> y, state = mixer(torch.randn(3, 7, 16))
    >>> y.shape
    torch.Size([3, 7, 16])
    """
    cls = mixer_class(mixer)
    known = mixer_options(mixer)
    for option in options:
        if option not in known:
            label = mixer if isinstance(mixer, str) else cls.__name__
            raise ValueError(
                unknown(f"option of mixer {label!r}", option, sorted(known))
            )
    return cls(d_model=d_model, num_heads=num_heads, **options)


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


def unknown(kind, got, known):
    """The message for an unknown name: what was got, what is known, the nearest.

    Arguments
    ---------
    kind : str
        What the name should have been, for instance "mixer".
    got : str
        The name.
    known : list of str
        The names that would do.

    Returns
    -------
    str

    Example
    -------
    >>> unknown("key", "lrr", ["lr", "seed"])
    "unknown key 'lrr'; did you mean 'lr'? known: lr, seed"
    """
    near = difflib.get_close_matches(str(got), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {got!r}{hint} known: {', '.join(known) or 'none'}"
