"""HyperConformer: Conformer speech recognition with linear-time token mixing.

Everything public is importable from here, and loaded when first asked for:
``import hyperconformer`` itself needs neither SpeechBrain nor Triton nor a GPU.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Type checkers and editors cannot follow __getattr__.
    from hyperconformer.core.masks import ChunkRule as ChunkRule
    from hyperconformer.encoders.branchformer import (
        BranchformerEncoder as BranchformerEncoder,
    )
    from hyperconformer.encoders.conformer import ConformerEncoder as ConformerEncoder
    from hyperconformer.encoders.conformer import (
        ConformerEncoderLayer as ConformerEncoderLayer,
    )
    from hyperconformer.encoders.transformer import (
        TransformerEncoder as TransformerEncoder,
    )
    from hyperconformer.hub.pretrained import CTCEncoder as CTCEncoder
    from hyperconformer.hub.pretrained import Encoder as Encoder
    from hyperconformer.hub.pretrained import FolderPretrainer as FolderPretrainer
    from hyperconformer.lm.linear_attention import (
        LinearAttentionTransformerLM as LinearAttentionTransformerLM,
    )
    from hyperconformer.lm.transformer import TransformerLM as TransformerLM
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
    from hyperconformer.mixers.registry import build_mixer as build_mixer
    from hyperconformer.mixers.registry import list_mixers as list_mixers
    from hyperconformer.mixers.registry import register_mixer as register_mixer
    from hyperconformer.model.features import FeatureExtractor as FeatureExtractor
    from hyperconformer.model.frontend import ConvolutionFrontEnd as ConvolutionFrontEnd
    from hyperconformer.model.recognizer import Recognizer as Recognizer
    from hyperconformer.model.transducer import Transducer as Transducer
    from hyperconformer.model.transformer_asr import (
        HyperConformerASR as HyperConformerASR,
    )
    from hyperconformer.nn.convolution import ConvolutionModule as ConvolutionModule
    from hyperconformer.search.ctc_beam import CTCSearcher as CTCSearcher
    from hyperconformer.search.ctc_beam import NGramSearcher as NGramSearcher
    from hyperconformer.search.greedy import GreedySearcher as GreedySearcher
    from hyperconformer.search.joint import JointSearcher as JointSearcher
    from hyperconformer.search.lexicon import LexiconSearcher as LexiconSearcher
    from hyperconformer.search.lexicon import PhoneSearcher as PhoneSearcher
    from hyperconformer.search.transducer import (
        TransducerSearcher as TransducerSearcher,
    )
    from hyperconformer.training.augment import RandomGain as RandomGain
    from hyperconformer.training.augment import SpeedPerturb as SpeedPerturb
    from hyperconformer.training.augment import Telephone as Telephone
    from hyperconformer.training.augment import TimeMask as TimeMask
    from hyperconformer.training.augment import VocalTractWarp as VocalTractWarp
    from hyperconformer.training.chunks import ChunkSampler as ChunkSampler
    from hyperconformer.training.phones import PhoneCTC as PhoneCTC
    from hyperconformer.training.resume import WholeCheckpointer as WholeCheckpointer
    from hyperconformer.training.schedule import WarmupCosine as WarmupCosine
    from hyperconformer.transcribe.offline import ASR as ASR
    from hyperconformer.transcribe.streaming import StreamingASR as StreamingASR
    from hyperconformer.transcribe.streaming import StreamingModel as StreamingModel

__version__ = "0.2.0"

_PUBLIC = {
    "ASR": "transcribe.offline",
    "BranchformerEncoder": "encoders.branchformer",
    "CTCEncoder": "hub.pretrained",
    "CTCSearcher": "search.ctc_beam",
    "ChunkRule": "core.masks",
    "ChunkSampler": "training.chunks",
    "ConformerEncoder": "encoders.conformer",
    "ConformerEncoderLayer": "encoders.conformer",
    "ConvolutionFrontEnd": "model.frontend",
    "ConvolutionModule": "nn.convolution",
    "Encoder": "hub.pretrained",
    "FeatureExtractor": "model.features",
    "FolderPretrainer": "hub.pretrained",
    "GreedySearcher": "search.greedy",
    "HyperConformerASR": "model.transformer_asr",
    "HyperGLU": "mixers.hyperglu",
    "HyperGLUConfig": "mixers.hyperglu",
    "HyperMixing": "mixers.hypermixing",
    "JointSearcher": "search.joint",
    "LexiconSearcher": "search.lexicon",
    "LinearAttentionTransformerLM": "lm.linear_attention",
    "MixtureOfAttention": "mixers.mixture_of_attention",
    "MixtureOfAutoregressiveAttention": "mixers.mixture_of_attention",
    "NGramSearcher": "search.ctc_beam",
    "PhoneCTC": "training.phones",
    "PhoneSearcher": "search.lexicon",
    "RandomGain": "training.augment",
    "Recognizer": "model.recognizer",
    "SpeedPerturb": "training.augment",
    "StreamingASR": "transcribe.streaming",
    "StreamingModel": "transcribe.streaming",
    "Telephone": "training.augment",
    "TimeMask": "training.augment",
    "TokenMixer": "mixers.base",
    "Transducer": "model.transducer",
    "TransducerSearcher": "search.transducer",
    "TransformerEncoder": "encoders.transformer",
    "TransformerLM": "lm.transformer",
    "VocalTractWarp": "training.augment",
    "WarmupCosine": "training.schedule",
    "WholeCheckpointer": "training.resume",
    "build_mixer": "mixers.registry",
    "list_mixers": "mixers.registry",
    "register_mixer": "mixers.registry",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module = importlib.import_module(f"hyperconformer.{_PUBLIC[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'hyperconformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
