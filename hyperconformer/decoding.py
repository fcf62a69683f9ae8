"""Beam searches with a language model, beside the greedy default.

Each stands after ``test_search:`` in a YAML file and has two methods:
``prepare(tokenizer, sentences, folder)`` before the first batch, with the training
transcripts, and ``texts(recognition, tokenizer)`` for each batch.
"""

import importlib.util
import pathlib

import torch
from speechbrain.decoders import (
    CTCScorer,
    S2STransformerBeamSearcher,
    ScorerBuilder,
    TransformerLMScorer,
)
from speechbrain.decoders.ctc import CTCBeamSearcher

from hyperconformer.masks import relative_to_frames
from hyperconformer.model_folder import load_model
from hyperconformer.ngram import train_arpa

# The tokens that every tokenizer here begins with; 0 is also "unknown" and padding.
BLANK_INDEX, BOS_INDEX, EOS_INDEX = 0, 1, 2


class NGramSearcher:
    """SpeechBrain's CTC beam search with a word n-gram model of the training set.

    Words that the training transcripts do not have are still possible, at a price.
    Needs KenLM's Python package (``pip install "hyperconformer[lm]"``).

    Arguments
    ---------
    order : int
        Longest n-gram, see :func:`hyperconformer.ngram.train_arpa`.
    lm_weight : float
        Weight of the model's score of a word, at least 0.
    word_bonus : float
        Added for each word.
    beam_size : int
        Hypotheses that are kept, at least 1.

    Raises
    ------
    ValueError
        If a setting is out of range or a package is not installed.
    """

    def __init__(self, order=3, lm_weight=0.5, word_bonus=1.0, beam_size=50):
        if order < 1 or lm_weight < 0 or beam_size < 1:
            raise ValueError(
                "order must be >= 1, lm_weight >= 0 and beam_size >= 1, "
                f"got {order}, {lm_weight} and {beam_size}"
            )
        for package in ("kenlm", "pygtrie"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"decoding with an n-gram model needs the package {package}: "
                    'pip install "hyperconformer[lm]"'
                )
        self.order = order
        self.lm_weight = lm_weight
        self.word_bonus = word_bonus
        self.beam_size = beam_size
        self.search = None

    def prepare(self, tokenizer, sentences, folder):
        """Train the n-gram model and build the search.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.
        sentences : list of str
            Training transcripts.
        folder : str or pathlib.Path
            Where the model goes, as ``lm.arpa``.
        """
        arpa = train_arpa(sentences, pathlib.Path(folder) / "lm.arpa", self.order)
        self.search = CTCBeamSearcher(
            blank_index=BLANK_INDEX,
            vocab_list=[
                tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())
            ],
            kenlm_model_path=str(arpa),
            alpha=self.lm_weight,
            beta=self.word_bonus,
            beam_size=self.beam_size,
        )

    def texts(self, recognition, tokenizer):
        """Decode a batch.

        Arguments
        ---------
        recognition : hyperconformer.integration.recognizer.Recognition
            Of the batch.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of str
        """
        best = self.search(recognition.ctc, recognition.relative_lengths)
        return [hypotheses[0].text.strip() for hypotheses in best]


class JointSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's beam search over the parts of a recogniser.

    A hypothesis is scored by the decoder, the CTC head and, in shallow fusion, a
    language model (arXiv:1706.02737): ``(1 - ctc_weight) * decoder + ctc_weight *
    CTC + lm_weight * LM``, log-probabilities, over the number of tokens with the end.

    It stands after ``test_search:`` in a YAML file, see ``hparams/joint_lm.yaml``.

    Arguments
    ---------
    recognizer : hyperconformer.integration.recognizer.Recognizer
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
    >>> from hyperconformer.integration.asr import HyperConformerASR
    >>> from hyperconformer.integration.recognizer import Recognizer
    >>> transformer = HyperConformerASR(
    ...     tgt_vocab=7, input_size=8, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=32, normalize_before=True, causal=False,
    ... ).eval()
    >>> search = JointSearcher(Recognizer(None, transformer, 16, 7), beam_size=2)
    >>> hypotheses, *_ = search(torch.randn(2, 9, 16), torch.tensor([1.0, 0.5]))
    >>> len(hypotheses)
    2
    """

    def __init__(
        self,
        recognizer,
        lm_folder=None,
        lm_weight=0.5,
        lm_temperature=1.0,
        temperature=1.0,
        ctc_weight=0.4,
        beam_size=10,
        max_decode_ratio=1.0,
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

    def prepare(self, tokenizer, sentences, folder):
        """Refuse a language model whose tokens mean something else.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.
        sentences : list of str
            Training transcripts; not needed here.
        folder : str or pathlib.Path
            The run's folder; not needed here.

        Raises
        ------
        ValueError
            If the language model was trained with other tokens.
        """
        if self.lm_tokenizer is None:
            return
        own, other = (
            [model.id_to_piece(token) for token in range(model.vocab_size())]
            for model in (tokenizer, self.lm_tokenizer)
        )
        if own != other:
            raise ValueError(
                f"the language model of {self.lm_folder} has other tokens than the "
                "recogniser: train it with the recogniser's tokenizer_file"
            )

    def texts(self, recognition, tokenizer):
        """Decode a batch.

        Arguments
        ---------
        recognition : hyperconformer.integration.recognizer.Recognition
            Of the batch.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of str
        """
        ids, *_ = self(recognition.encoded, recognition.relative_lengths)
        return [tokenizer.decode_ids(sequence) for sequence in ids]

    @torch.no_grad()
    def forward(self, encoded, relative_lengths):
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

    def set_n_out(self):
        """The number of tokens; SpeechBrain asks its own kind of Linear."""
        return self.fc.out_features

    def change_max_decoding_length(self, min_decode_steps, max_decode_steps):
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
