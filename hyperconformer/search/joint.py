"""Beam search with decoder, CTC and a language model."""

import pathlib
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.decoders import (
    CTCScorer,
    S2STransformerBeamSearcher,
    ScorerBuilder,
    TransformerLMScorer,
)

from hyperconformer.core.masks import relative_to_frames
from hyperconformer.core.tokens import BLANK_INDEX, BOS_INDEX, EOS_INDEX, list_pieces
from hyperconformer.core.words import Hypothesis
from hyperconformer.hub.folder import load_model
from hyperconformer.model.recognizer import Recognition, Recognizer
from hyperconformer.search.base import Searcher


class JointSearcher(Searcher, S2STransformerBeamSearcher):
    """SpeechBrain's beam search over the parts of a recogniser.

    A hypothesis is scored by the decoder, the CTC head and, in shallow fusion, a
    language model (arXiv:1706.02737): ``(1 - ctc_weight) * decoder + ctc_weight *
    CTC + lm_weight * LM``, log-probabilities, over the number of tokens with the end.

    It stands after ``test_search:`` in a YAML file, see ``hparams/joint_lm.yaml``. It
    cannot stream: the decoder attends to the whole utterance.

    Arguments
    ---------
    recognizer : hyperconformer.model.recognizer.Recognizer
        With an attention decoder; it may be trained later.
    lm_folder : str or pathlib.Path, optional
        Model folder of a language model (``hparams/lm.yaml``) on the recogniser's
        tokens, or the output folder of its training. None = no language model.
    lm_weight : float
        At least 0.
    lm_temperature : float
        Above 1 the language model is less sure of itself, below 1 more.
    temperature : float
        Above 1 the decoder is less sure of itself, below 1 more.
    ctc_weight : float
        In [0, 1).
    beam_size : int
        Hypotheses that are kept.
    max_decode_ratio : float
        Tokens at most, over the encoder's frames.

    Raises
    ------
    FileNotFoundError
        If the language model is missing.
    ValueError
        If the recogniser has no decoder, the language model has another number of
        tokens, or a setting is out of range.

    Example
    -------
    >>> from hyperconformer.model.transformer_asr import HyperConformerASR
    >>> from hyperconformer.model.recognizer import Recognizer
    >>> transformer = HyperConformerASR(
    ...     tgt_vocab=7, input_size=8, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=32, normalize_before=True, causal=False,
    ... ).eval()
    >>> search = JointSearcher(Recognizer(None, transformer, 16, 7), beam_size=2)
    >>> hypotheses, *_ = search(torch.randn(2, 9, 16), torch.tensor([1.0, 0.5]))
    >>> len(hypotheses)
    2
    """

    streams: ClassVar[bool] = False
    takes: ClassVar[Literal["ctc", "encoded"]] = "encoded"

    def __init__(
        self,
        recognizer: Recognizer,
        lm_folder: str | pathlib.Path | None = None,
        lm_weight: float = 0.5,
        lm_temperature: float = 1.0,
        temperature: float = 1.0,
        ctc_weight: float = 0.4,
        beam_size: int = 10,
        max_decode_ratio: float = 1.0,
    ):
        if recognizer.decoder_head is None:
            raise ValueError(
                "joint decoding needs an attention decoder, got num_decoder_layers: 0"
            )
        if not 0 <= ctc_weight < 1 or lm_weight < 0 or beam_size < 1:
            raise ValueError(
                "ctc_weight must be in [0, 1), lm_weight >= 0 and beam_size >= 1, "
                f"got {ctc_weight}, {lm_weight} and {beam_size}"
            )
        full, partial, weights = [], [], {}
        # CTC scores only the best tokens of the others: scoring all of them costs
        # frames times vocabulary for each hypothesis.
        if ctc_weight > 0:
            partial = [CTCScorer(recognizer.ctc_head, BLANK_INDEX, EOS_INDEX)]
            weights["ctc"] = ctc_weight
        tokenizer = None
        if lm_folder is not None:
            config, tokenizer = load_model(lm_folder, ["language_model"])
            lm = config["language_model"]
            vocab_size = recognizer.ctc_head.out_features
            if lm.num_tokens != vocab_size:
                raise ValueError(
                    f"the language model of {lm_folder} has {lm.num_tokens} "
                    f"tokens, the recogniser {vocab_size}: train it with the "
                    "recogniser's tokenizer_file"
                )
            full = [TransformerLMScorer(lm, lm_temperature)]
            weights["transformerlm"] = lm_weight
        super().__init__(
            modules=[recognizer.transformer, recognizer.decoder_head],
            bos_index=BOS_INDEX,
            eos_index=EOS_INDEX,
            min_decode_ratio=0.0,
            max_decode_ratio=max_decode_ratio,
            beam_size=beam_size,
            temperature=temperature,
            using_eos_threshold=False,
            scorer=ScorerBuilder(weights, full, partial) if weights else None,
        )
        self.lm_folder = lm_folder
        self.lm_tokenizer = tokenizer

    def prepare(
        self,
        tokenizer: SentencePieceProcessor,
        sentences: Sequence[str] = (),
        folder: str | pathlib.Path | None = None,
    ) -> None:
        """See :meth:`Searcher.prepare`.

        Raises
        ------
        ValueError
            If the language model was trained with other tokens.
        """
        if self.lm_tokenizer is not None:
            _require_same_tokens(tokenizer, self.lm_tokenizer, self.lm_folder)

    def hypotheses(
        self, recognition: Recognition, tokenizer: SentencePieceProcessor
    ) -> list[list[Hypothesis]]:
        """See :meth:`Searcher.hypotheses`; one hypothesis an utterance."""
        return self._decode(
            recognition.encoded, recognition.relative_lengths, tokenizer
        )

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """See :meth:`Searcher.decode`."""
        whole = torch.ones(1, device=frames.device)
        return self._decode(frames[None], whole, tokenizer)[0]

    def _decode(self, encoded, relative_lengths, tokenizer):
        ids, _, scores, _ = self(encoded, relative_lengths)
        return [
            [Hypothesis(tokenizer.decode_ids(tokens), score, tuple(tokens))]
            for tokens, score in zip(ids, scores.tolist())
        ]

    @torch.no_grad()
    def forward(
        self, encoded: torch.Tensor, relative_lengths: torch.Tensor
    ) -> tuple[list[list[int]], torch.Tensor, torch.Tensor, torch.Tensor]:
        """Search.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D) frames of the encoder.
        relative_lengths : torch.Tensor
            (B,) in (0, 1]; all may be below 1.

        Returns
        -------
        hypotheses : list of list of int
            The tokens of each utterance, without begin and end.
        lengths : torch.Tensor
            (B,) relative.
        scores : torch.Tensor
            (B,).
        log_probs : torch.Tensor
            (B, U).
        """
        # SpeechBrain's CTC scorer wants the longest utterance to fill the batch.
        frames = relative_to_frames(relative_lengths, encoded.shape[1])
        longest = frames.max()
        steps = (frames * self.max_decode_ratio).long().clamp(min=1)
        self.max_steps = steps.repeat_interleave(self.beam_size)
        return super().forward(encoded[:, :longest], frames / longest)

    def set_n_out(self) -> int:
        """The number of tokens; SpeechBrain asks its own kind of Linear."""
        return self.fc.out_features

    def change_max_decoding_length(
        self, min_decode_steps: int, max_decode_steps: int
    ) -> tuple[int, int]:
        """As many steps as the longest utterance may take."""
        return min_decode_steps, int(self.max_steps.max())

    def _set_eos_minus_inf_step(self, log_probs, step, min_decode_steps):
        """Rule out what is no text, and all but the end at an utterance's last step.

        SpeechBrain cuts off hypotheses at the last step of the batch, which would
        let an utterance's text depend on the others.
        """
        log_probs[:, [BLANK_INDEX, BOS_INDEX]] = self.minus_inf
        is_last = (step + 1 >= self.max_steps).unsqueeze(1)
        is_end = torch.arange(self.n_out, device=log_probs.device) == EOS_INDEX
        log_probs = log_probs.masked_fill(is_last & ~is_end, self.minus_inf)
        return super()._set_eos_minus_inf_step(log_probs, step, min_decode_steps)


def _require_same_tokens(tokenizer, other, lm_folder):
    if list_pieces(tokenizer) != list_pieces(other):
        raise ValueError(
            f"the language model of {lm_folder} has other tokens than the "
            "recogniser: train it with the recogniser's tokenizer_file"
        )
