"""Searches: from log-probabilities to hypotheses, greedy or with language models.

Each is a :class:`Searcher`, and may stand after ``test_search:`` in a YAML file.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.decoders.ctc import CTCBeamSearcher
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.core.extras import import_extra
from hyperconformer.core.masks import lengths_to_padding_mask
from hyperconformer.core.text import as_written
from hyperconformer.core.tokens import (
    BLANK_INDEX,
    BOS_INDEX,
    EOS_INDEX,
    NO_TEXT,
    WORD_START,
)
from hyperconformer.core.words import Hypothesis
from hyperconformer.hub.folder import MAX_BYTES, NGRAM_FILE, load_model
from hyperconformer.lm.ngram import NGramScorer, train_arpa
from hyperconformer.model.recognizer import Recognition
from hyperconformer.search.base import Searcher

# What the CTC beam search leaves out, in natural logarithms: tokens of a frame that are
# less probable, and hypotheses that are worse than the best by more. SpeechBrain's
# thresholds come first; where they leave fewer than `nbest` readings, the next ones are
# tried. Hot words are hardly heard by the model, and begin with the second ones.
THRESHOLDS = [
    {"token_prune_min_logp": token, "beam_prune_logp": beam}
    for token, beam in ((-5.0, -10.0), (-12.0, -25.0), (-24.0, -50.0), (-96.0, -200.0))
]
# The letters of a hot word that count.
HOT_LETTERS = 6
# Of a hot word that the n-gram model does not know, in decimal logarithms.
HOT_LOG10 = -3.0


class CTCSearcher(Searcher):
    """SpeechBrain's CTC beam search: several readings, hot words, language models.

    A hypothesis is scored by its CTC log-probability, plus ``lm_weight`` times that
    of a word n-gram model and ``word_bonus`` for each word, plus ``hotword_weight``
    for each letter of a hot phrase that it holds, of a word at most six: short words
    are easily found where they were not said. A word that has just begun counts whole,
    so that it survives the beam. A neural language model then rescores the
    finished hypotheses.

    Arguments
    ---------
    beam_size : int
        Hypotheses that are kept, at least 1.
    nbest : int
        Hypotheses that are returned, from 1 to ``beam_size``.
    arpa : str or pathlib.Path, optional
        Word n-gram model, ``*.arpa``. One above 16 MB, or in KenLM's binary form,
        needs KenLM (``pip install "hyperconformer[lm]"``).
    lm_weight : float
        Weight of the n-gram model, at least 0.
    word_bonus : float
        Added for each word, where there is an n-gram model.
    hotwords : iterable of str
        Words or phrases to favour.
    hotword_weight : float
        For each letter, in natural logarithms, at least 0.
    lm_folder : str or pathlib.Path, optional
        Model folder of a language model (``hparams/lm.yaml``) with the recogniser's
        tokens.
    rescore_weight : float
        Weight of that model, at least 0.

    Raises
    ------
    FileNotFoundError
        If a language model is missing.
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        beam_size: int = 50,
        nbest: int = 1,
        arpa: str | pathlib.Path | None = None,
        lm_weight: float = 0.5,
        word_bonus: float = 1.0,
        hotwords: Iterable[str] = (),
        hotword_weight: float = 2.0,
        lm_folder: str | pathlib.Path | None = None,
        rescore_weight: float = 0.5,
    ):
        if not 1 <= nbest <= beam_size:
            raise ValueError(
                f"nbest must be from 1 to beam_size = {beam_size}, got {nbest}"
            )
        for name, weight in (
            ("lm_weight", lm_weight),
            ("hotword_weight", hotword_weight),
            ("rescore_weight", rescore_weight),
        ):
            if not weight >= 0:
                raise ValueError(f"{name} must be >= 0, got {weight}")
        self.beam_size, self.nbest = beam_size, nbest
        self.lm_weight, self.word_bonus = lm_weight, word_bonus
        self.hotwords, self.hotword_weight = tuple(hotwords), hotword_weight
        self.rescore_weight = rescore_weight
        self.arpa: str | pathlib.Path | None = None
        self.search: Any = None
        self.lm: Any = None
        if arpa is not None:
            if not pathlib.Path(arpa).is_file():
                raise FileNotFoundError(f"no such n-gram model: {arpa}")
            self.arpa = arpa
        self.lm_folder = lm_folder
        if lm_folder is not None:
            config, self.lm_tokenizer = load_model(lm_folder, ["language_model"])
            self.lm = config["language_model"]

    @property
    def ngram(self) -> dict[str, Any]:
        """The options that bring the n-gram model, for a model folder to keep.

        Empty without one, and where it is too large to travel with a model.
        """
        if self.arpa is None or _needs_kenlm(self.arpa):
            return {}
        return {
            "arpa": self.arpa,
            "lm_weight": self.lm_weight,
            "word_bonus": self.word_bonus,
        }

    def prepare(
        self,
        tokenizer: SentencePieceProcessor,
        sentences: Sequence[str] = (),
        folder: str | pathlib.Path | None = None,
    ) -> None:
        """Build the search for a recogniser.

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
            If a hot word has a character that the recogniser cannot write, the
            language model has other tokens or words in letters that the recogniser
            cannot write, or KenLM is needed and not installed.
        """
        if self.lm is not None:
            _require_same_tokens(tokenizer, self.lm_tokenizer, self.lm_folder)
        options, scorer = {}, None
        if self.arpa is not None and not _needs_kenlm(self.arpa):
            scorer = NGramScorer(self.arpa, self.lm_weight, self.word_bonus, tokenizer)
        elif self.arpa is not None:
            _require_kenlm(self.arpa)
            options = {
                "kenlm_model_path": str(self.arpa),
                "alpha": self.lm_weight,
                "beta": self.word_bonus,
            }
        self.search = _BiasedSearcher(
            phrases=[_hot_phrase(phrase, tokenizer) for phrase in self.hotwords],
            bias=self.hotword_weight,
            blank_index=BLANK_INDEX,
            vocab_list=_pieces(tokenizer),
            beam_size=self.beam_size,
            # All that rescoring may choose from; merged histories would be missing.
            topk=self.nbest if self.lm is None else self.beam_size,
            prune_history=self.nbest == 1 and self.lm is None,
            **options,
        )
        if scorer is not None:
            self.search.lm = scorer
        elif self.arpa is not None:
            _require_own_case(self.search.kenlm_model, tokenizer, self.arpa)
        if self.search.lm is not None and self.hotwords:
            self.search.lm = _HotWordScorer(
                self.search, self.lm_weight, self.word_bonus
            )

    def hypotheses(
        self, recognition: Recognition, tokenizer: SentencePieceProcessor
    ) -> list[list[Hypothesis]]:
        """Decode a batch.

        Arguments
        ---------
        recognition : hyperconformer.model.recognizer.Recognition
            Of the batch.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of list of Hypothesis
            For each utterance at most ``nbest``, the best first.
        """
        log_probs = recognition.ctc.clone()
        log_probs[..., list(NO_TEXT)] = -torch.inf
        found = []
        # One by one: SpeechBrain rounds relative lengths down, so that an utterance
        # could lose its last frame, depending on the others of its batch.
        for frames, length in zip(log_probs, recognition.lengths.tolist()):
            best = [
                Hypothesis(
                    hypothesis.text.strip(),
                    float(hypothesis.lm_score),
                    tuple(tokenizer.encode(hypothesis.text.strip())),
                )
                for hypothesis in self._search(frames[None, :length])
            ]
            if self.lm is not None:
                best = self._rescore(best)
            found.append(best[: self.nbest])
        return found

    def _search(self, log_probs):
        """SpeechBrain's hypotheses: as many as are wanted, if there are so many."""
        for thresholds in THRESHOLDS[1 if self.hotwords else 0 :]:
            vars(self.search).update(thresholds)
            found = self.search(log_probs)[0]
            if len(found) >= self.nbest:
                break
        return found

    @torch.no_grad()
    def _rescore(self, hypotheses):
        """Add the neural language model's log-probabilities, and sort."""
        targets = [
            torch.tensor([*hypothesis.tokens, EOS_INDEX]) for hypothesis in hypotheses
        ]
        lengths = torch.tensor([len(target) for target in targets])
        targets = pad_sequence(targets, batch_first=True)
        begin = torch.full((len(targets), 1), BOS_INDEX)
        real = ~lengths_to_padding_mask(lengths, targets.shape[1])
        inputs = torch.cat([begin, targets[:, :-1]], dim=1)
        log_probs = self.lm(inputs, real).log_softmax(-1)
        scores = log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        scores = self.rescore_weight * scores.masked_fill(~real, 0.0).sum(1)
        rescored = [
            dataclasses.replace(hypothesis, score=hypothesis.score + score)
            for hypothesis, score in zip(hypotheses, scores.tolist())
        ]
        return sorted(rescored, key=lambda hypothesis: -hypothesis.score)


class NGramSearcher(CTCSearcher):
    """CTC beam search with a word n-gram model of the training set.

    Words that the training transcripts do not have are still possible, at a price.

    Arguments
    ---------
    order : int
        Longest n-gram, see :func:`hyperconformer.lm.ngram.train_arpa`.
    lm_weight : float
        Weight of the model's score of a word, at least 0.
    word_bonus : float
        Added for each word.
    beam_size : int
        Hypotheses that are kept, at least 1.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    def __init__(
        self,
        order: int = 3,
        lm_weight: float = 0.5,
        word_bonus: float = 1.0,
        beam_size: int = 50,
    ):
        if order < 1:
            raise ValueError(f"order must be >= 1, got {order}")
        super().__init__(beam_size, lm_weight=lm_weight, word_bonus=word_bonus)
        self.order = order

    def prepare(
        self,
        tokenizer: SentencePieceProcessor,
        sentences: Sequence[str] = (),
        folder: str | pathlib.Path | None = None,
    ) -> None:
        """Train the n-gram model and build the search.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.
        sentences : list of str
            Training transcripts.
        folder : str or pathlib.Path
            Where the model goes, as ``lm.arpa``.

        Raises
        ------
        ValueError
            If no folder is given.
        """
        if folder is None:
            raise ValueError("an n-gram search needs a folder for its model, got None")
        arpa = pathlib.Path(folder) / NGRAM_FILE
        # The model is no smaller than so much text: better said before than after.
        if sum(map(len, sentences)) > MAX_BYTES[NGRAM_FILE]:
            _require_kenlm(arpa)
        self.arpa = train_arpa(sentences, arpa, self.order)
        super().prepare(tokenizer, sentences, folder)


class _BiasedSearcher(CTCBeamSearcher):
    """SpeechBrain's search, with a bonus for hypotheses that hold certain phrases."""

    def __init__(self, phrases, bias, **options):
        super().__init__(**options)
        self.phrases = [tuple(phrase.split()) for phrase in phrases]
        self.bias = bias
        self.ended = False
        # The hypotheses of a frame are mostly those of the frame before.
        self.matched = {}

    def decode_log_probs(self, *arguments, **options):
        """Search one utterance."""
        self.matched.clear()
        return super().decode_log_probs(*arguments, **options)

    def get_lm_beams(self, *arguments, **options):
        """SpeechBrain's scores, plus the bonus."""
        beams = super().get_lm_beams(*arguments, **options)
        for beam in beams if self.phrases else ():
            partial = None if self.ended else beam.partial_word
            key = beam.text, partial
            if key not in self.matched:
                self.matched[key] = self._letters_matched(*key)
            beam.lm_score += self.bias * self.matched[key]
        return beams

    def finalize_decoding(self, *arguments, **options):
        """At the end, the beginning of a phrase counts no more."""
        self.ended = True
        try:
            return super().finalize_decoding(*arguments, **options)
        finally:
            self.ended = False

    def _letters_matched(self, text, partial):
        """Letters of complete phrases, and of a phrase that may be on its way."""
        words = tuple(text.split())
        # `free` is where the words begin that no complete phrase has taken.
        matched = free = position = 0
        while position < len(words):
            whole = max(
                (
                    phrase
                    for phrase in self.phrases
                    if words[position : position + len(phrase)] == phrase
                ),
                default=(),
                key=len,
            )
            position += len(whole) or 1
            if whole:
                matched, free = matched + _letters(whole), position
        if partial is None:
            return matched
        return matched + max(
            _letters_begun(phrase, words[free:], partial) for phrase in self.phrases
        )


class _HotWordScorer:
    """A search's n-gram model, to which hot words are no unknown words.

    SpeechBrain's scorers price an unknown word so high that no hot word could win.
    """

    def __init__(self, search, weight, bonus):
        self.scorer, self.order = search.lm, search.lm.order
        vocabulary = search.kenlm_model or search.lm.words
        self.words = sorted({word for phrase in search.phrases for word in phrase})
        self.unknown = {word for word in self.words if word not in vocabulary}
        self.hot_score = weight * HOT_LOG10 * math.log(10) + bonus

    def get_start_state(self):
        return self.scorer.get_start_state()

    def score(self, state, word, is_last_word=False):
        score, state = self.scorer.score(state, word, is_last_word)
        return self.hot_score if word in self.unknown else score, state

    def score_partial_token(self, beginning):
        if any(word.startswith(beginning) for word in self.words):
            return 0.0
        return self.scorer.score_partial_token(beginning)


def _hypothesis(tokens, score, tokenizer):
    """What a decoder has said, without the tokens that no text holds."""
    tokens = [token for token in tokens if token not in NO_TEXT]
    return Hypothesis(tokenizer.decode_ids(tokens), score, tuple(tokens))


def _letters_begun(phrase, words, partial):
    """Letters of a phrase that a text ends with, its last word perhaps unfinished."""
    for whole in range(min(len(phrase) - 1, len(words)), -1, -1):
        if words[len(words) - whole :] == phrase[:whole]:
            if partial == "":
                return _letters(phrase[:whole])
            if phrase[whole].startswith(partial):
                return _letters(phrase[: whole + 1])
    return 0


def _letters(words):
    """How many letters words have, each word at most so many as count."""
    return sum(min(len(word), HOT_LETTERS) for word in words)


def _hot_phrase(phrase, tokenizer):
    """A hot phrase in the letters that the recogniser writes."""
    written = as_written(phrase, tokenizer)
    if not written or tokenizer.unk_id() in tokenizer.encode(written):
        raise ValueError(
            f"the hot word {phrase!r} is empty or has characters that the recogniser "
            "cannot write"
        )
    return written


def _require_own_case(model, tokenizer, arpa):
    """Refuse a KenLM model in another letter case; its words can only be asked for."""
    pieces = _pieces(tokenizer)[EOS_INDEX + 1 :]  # a model has the marks in any case
    words = {piece.replace(WORD_START, "") for piece in pieces}
    others = {word.swapcase() for word in words} - words
    if not any(word in model for word in words) and any(w in model for w in others):
        raise ValueError(
            f"{arpa} is in another letter case than the recogniser writes: make it "
            "anew of text in the recogniser's case"
        )


def _pieces(tokenizer):
    return [tokenizer.id_to_piece(token) for token in range(tokenizer.vocab_size())]


def _require_same_tokens(tokenizer, other, lm_folder):
    if _pieces(tokenizer) != _pieces(other):
        raise ValueError(
            f"the language model of {lm_folder} has other tokens than the "
            "recogniser: train it with the recogniser's tokenizer_file"
        )


def _needs_kenlm(arpa):
    """Whether an n-gram model is binary, or too large to be read in Python."""
    path = pathlib.Path(arpa)
    return path.suffix != ".arpa" or path.stat().st_size > MAX_BYTES[NGRAM_FILE]


def _require_kenlm(arpa):
    for package in ("kenlm", "pygtrie"):
        try:
            import_extra(package, "lm", "such n-grams")
        except ImportError as error:
            raise ValueError(
                f"{arpa} is above {MAX_BYTES[NGRAM_FILE] >> 20} MB or not named "
                f"*.arpa: {error}"
            ) from error
