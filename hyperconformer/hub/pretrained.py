"""What a model folder needs so that SpeechBrain's own interfaces load it.

``EncoderASR.from_hparams(source=FOLDER)`` and ``EncoderDecoderASR.from_hparams`` build
the folder's ``hyperparams.yaml`` with SpeechBrain's loader. It expects pickled
checkpoints named ``KEY.ckpt``; a model folder has safetensors under its own names, and
:class:`FolderPretrainer` hands them over.
"""

import pathlib
from typing import Any

import torch
from safetensors.torch import load_file
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer
from torch import nn

from hyperconformer.model.features import FeatureExtractor
from hyperconformer.model.recognizer import Recognizer


class Encoder(nn.Module):
    """Samples to encoder frames, the module ``encoder`` of ``EncoderDecoderASR``.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Samples to features.
    recognizer : hyperconformer.model.recognizer.Recognizer
        Features to frames.
    """

    def __init__(self, extractor: FeatureExtractor, recognizer: Recognizer):
        super().__init__()
        self.extractor = extractor
        self.recognizer = recognizer

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples.
        wav_lens : torch.Tensor, optional
            (B,) relative lengths in (0, 1].

        Returns
        -------
        torch.Tensor
            (B, T, D) frames.
        """
        return self._recognize(wavs, wav_lens).encoded

    def _recognize(self, wavs, wav_lens):
        return self.recognizer(*self.extractor(wavs, wav_lens))


class CTCEncoder(Encoder):
    """Samples to CTC log-probabilities, the module ``encoder`` of ``EncoderASR``."""

    def forward(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Recognise.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples.
        wav_lens : torch.Tensor, optional
            (B,) relative lengths in (0, 1].

        Returns
        -------
        torch.Tensor
            (B, T, V) log-probabilities.
        """
        return self._recognize(wavs, wav_lens).ctc


class FolderPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer for files beside ``hyperparams.yaml``, without pickle.

    Arguments
    ---------
    loadables : dict
        Name to object: torch modules, read from safetensors, or a
        ``sentencepiece.SentencePieceProcessor``.
    files : dict of str to str
        Name to file name in the folder.
    """

    def __init__(self, loadables: dict[str, Any], files: dict[str, str]):
        hooks = {
            name: _load_module if isinstance(loadable, nn.Module) else _load_tokenizer
            for name, loadable in loadables.items()
        }
        super().__init__(loadables=loadables, custom_hooks=hooks)
        self.files = files

    def collect_files(
        self,
        default_source: str | pathlib.Path | FetchSource | None = None,
        **options: Any,
    ) -> dict[str, pathlib.Path]:
        """Find the files in the folder or hub repository that is being loaded.

        Arguments
        ---------
        default_source : str or speechbrain FetchSource
            Where ``hyperparams.yaml`` is from.
        **options
            As ``Pretrainer.collect_files``.

        Returns
        -------
        dict of str to pathlib.Path
        """
        for name, file in self.files.items():
            if isinstance(default_source, FetchSource):
                origin, folder = default_source
                self.add_paths({name: FetchSource(origin, f"{folder}/{file}")})
            else:
                assert default_source is not None
                self.add_paths({name: f"{pathlib.Path(default_source)}/{file}"})
        return super().collect_files(default_source, **options)


def _load_module(module, path):
    module.load_state_dict(load_file(path), strict=True)


def _load_tokenizer(tokenizer, path):
    tokenizer.load(str(path))
