"""HyperConformer: Conformer speech recognition with linear-time token mixing.

Everything public is importable from here, and loaded when first asked for:
``import hyperconformer`` itself needs neither SpeechBrain nor Triton nor a GPU.
"""

import importlib

__version__ = "0.2.0"

_PUBLIC = {
    "BranchformerEncoder": "branchformer",
    "ChunkRule": "masks",
    "ConformerEncoder": "conformer",
    "ConformerEncoderLayer": "conformer",
    "ConvolutionFrontEnd": "integration.frontend",
    "ConvolutionModule": "conformer",
    "HyperConformerASR": "integration.asr",
    "HyperGLU": "mixers.hyperglu",
    "HyperGLUConfig": "mixers.hyperglu",
    "HyperMixing": "mixers.hypermixing",
    "LinearAttentionTransformerLM": "lm",
    "MixtureOfAttention": "mixers.mixture_of_attention",
    "MixtureOfAutoregressiveAttention": "mixers.mixture_of_attention",
    "TokenMixer": "mixers.base",
    "TransformerEncoder": "transformer",
    "build_mixer": "registry",
    "list_mixers": "registry",
    "register_mixer": "registry",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name in _PUBLIC:
        module = importlib.import_module(f"hyperconformer.{_PUBLIC[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'hyperconformer' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
