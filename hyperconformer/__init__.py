"""HyperConformer: Conformer speech recognition with linear-time token mixing.

Everything public is importable from here, and loaded when first asked for:
``import hyperconformer`` itself needs neither SpeechBrain nor Triton nor a GPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Type checkers and editors cannot follow __getattr__.
    from hyperconformer.branchformer import BranchformerEncoder as BranchformerEncoder
    from hyperconformer.conformer import ConformerEncoder as ConformerEncoder
    from hyperconformer.conformer import ConformerEncoderLayer as ConformerEncoderLayer
    from hyperconformer.conformer import ConvolutionModule as ConvolutionModule
    from hyperconformer.integration.asr import HyperConformerASR as HyperConformerASR
    from hyperconformer.integration.frontend import (
        ConvolutionFrontEnd as ConvolutionFrontEnd,
    )
    from hyperconformer.lm import (
        LinearAttentionTransformerLM as LinearAttentionTransformerLM,
    )
    from hyperconformer.masks import ChunkRule as ChunkRule
    from hyperconformer.mixers.base import TokenMixer as TokenMixer
    from hyperconformer.mixers.hyperglu import HyperGLU as HyperGLU
    from hyperconformer.mixers.hyperglu import HyperGLUConfig as HyperGLUConfig
    from hyperconformer.mixers.hypermixing import HyperMixing as HyperMixing
    from hyperconformer.mixers.mixture_of_attention import (
        MixtureOfAttention as MixtureOfAttention,
    )
    from hyperconformer.mixers.mixture_of_attention import (
        MixtureOfAutoregressiveAttention as MixtureOfAutoregressiveAttention,
    )
    from hyperconformer.registry import build_mixer as build_mixer
    from hyperconformer.registry import list_mixers as list_mixers
    from hyperconformer.registry import register_mixer as register_mixer
    from hyperconformer.transformer import TransformerEncoder as TransformerEncoder

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


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module = importlib.import_module(f"hyperconformer.{_PUBLIC[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'hyperconformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
