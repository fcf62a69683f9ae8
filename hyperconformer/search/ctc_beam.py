"""CTC beam search with language models and hot words, for utterances and streams."""

import copy
import functools
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from speechbrain.decoders.ctc import CTCBeam, CTCBeamSearcher

from hyperconformer.core.extras import import_extra
from hyperconformer.core.text import write_hotword
from hyperconformer.core.tokens import (
    BLANK_INDEX,
    EOS_INDEX,
    NO_TEXT,
    WORD_START,
    list_pieces,
)
from hyperconformer.core.words import Hypothesis
from hyperconformer.hub.folder import MAX_BYTES, NGRAM_FILE
from hyperconformer.lm.ngram import HOT_LOG10, NGramScorer, train_arpa
from hyperconformer.search.base import BeamSearch, Search, Searcher, Token
from hyperconformer.search.rescoring import Rescorer

# What the CTC beam search leaves out, in natural logarithms: tokens of a frame that are
# less probable, and hypotheses that are worse than the best by more. SpeechBrain's
# thresholds come first; where they leave fewer than `nbest` readings, the next ones are
# tried. Hot words are hardly heard by the model, and begin with the second ones.
THRESHOLDS = [
    {"token_prune_min_logp": token, "beam_prune_logp": beam}
    for token, beam in ((-5.0, -10.0), (-12.0, -25.0), (-24.0, -50.0), (-96.0, -200.0))
]
# A stream's readings lose what they share once it is as many words.
FORGET_WORDS = 16
# The letters of a hot word that count.
HOT_LETTERS = 6


class CTCSearcher(Searcher):
    """SpeechBrain's CTC beam search: several readings, hot words, language models.

    A hypothesis is scored by its CTC log-probability, plus ``lm_weight`` times that
    of a word n-gram model and ``word_bonus`` for each word, plus ``hotword_weight``
    for each letter of a hot phrase that it holds, of a word at most six: short words
    are easily found where they were not said. A word that has just begun counts whole,
    so that it survives the beam. A neural language model then rescores the
    finished hypotheses.

    In a stream, the words with which every hypothesis of the beam begins are final.
    Where few readings are left, :meth:`decode` searches an utterance once more, in more
    detail, until there are ``nbest``; a stream cannot, and may end with fewer.

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
    lm_folder, rescore_weight
        A neural language model and its weight, at least 0, see
        :class:`~hyperconformer.search.rescoring.Rescorer`.

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
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {weight}")
        self.beam_size, self.nbest = beam_size, nbest
        self.lm_weight, self.word_bonus = lm_weight, word_bonus
        self.hotwords, self.hotword_weight = tuple(hotwords), hotword_weight
        self.arpa: str | pathlib.Path | None = None
        self.search: Any = None
        if arpa is not None:
            if not pathlib.Path(arpa).is_file():
                raise FileNotFoundError(f"no such n-gram model: {arpa}")
            self.arpa = arpa
        self.rescorer = (
            None if lm_folder is None else Rescorer(lm_folder, rescore_weight)
        )

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
        """Build the search, see :meth:`Searcher.prepare`.

        Raises
        ------
        ValueError
            If a hot word has a character that the recogniser cannot write, the n-gram
            model has words in letters that the recogniser cannot write, or KenLM is
            needed and not installed.
        """
        if self.rescorer is not None:
            self.rescorer.check_letters(tokenizer)
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
        make = functools.partial(
            _BiasedSearcher,
            phrases=[write_hotword(phrase, tokenizer) for phrase in self.hotwords],
            bias=self.hotword_weight,
            blank_index=BLANK_INDEX,
            vocab_list=list_pieces(tokenizer),
            beam_size=self.beam_size,
            # All that rescoring may choose from; merged histories would be missing.
            topk=self.nbest if self.rescorer is None else self.beam_size,
            prune_history=self.nbest == 1 and self.rescorer is None,
        )
        try:
            self.search = make(**options)
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{self.arpa} is no n-gram model: give an ARPA file, or one in KenLM's "
                "binary form"
            ) from error
        if scorer is not None:
            self.search.lm = scorer
        elif self.arpa is not None:
            _require_own_case(self.search.kenlm_model, tokenizer, self.arpa)
        if self.search.lm is not None and self.hotwords:
            self.search.lm = _HotWordScorer(
                self.search, self.lm_weight, self.word_bonus
            )

    def begin(self, tokenizer: SentencePieceProcessor) -> Search:
        """See :meth:`Searcher.begin`."""
        return self._begin(tokenizer, self._thresholds()[0])

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """See :meth:`Searcher.decode`; it searches until there are ``nbest``."""
        for thresholds in self._thresholds():
            search = self._begin(tokenizer, thresholds)
            search.advance(frames)
            # As many as are wanted, if there are so many.
            if len(search.readings()) >= self.nbest:
                break
        return search.finish()

    def _thresholds(self):
        return THRESHOLDS[1 if self.hotwords else 0 :]

    def _begin(self, tokenizer, thresholds):
        # Streams are searched in turn, and each has its own memory.
        search = copy.copy(self.search)
        vars(search).update(thresholds, matched={})
        return CTCSearch(tokenizer, search, self)

    def rescore(self, found: list[Hypothesis]) -> list[Hypothesis]:
        """All that a search has found, the best first."""
        return found if self.rescorer is None else self.rescorer.rescore(found)


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
        """Train the n-gram model, as ``folder/lm.arpa``, and build the search.

        See :meth:`Searcher.prepare`.

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


class CTCSearch(BeamSearch):
    """A beam of readings of one utterance, or of one segment of a stream.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    search : _BiasedSearcher
        SpeechBrain's search, of this utterance alone.
    searcher : CTCSearcher
        What rescores and counts the hypotheses.
    """

    def __init__(
        self,
        tokenizer: SentencePieceProcessor,
        search: "_BiasedSearcher",
        searcher: CTCSearcher,
    ):
        super().__init__(tokenizer)
        self.search, self.searcher = search, searcher
        empty: dict[str, Any] = dict.fromkeys(("text", "full_text", "next_word"), "")
        empty.update(partial_word="", last_token=None, last_token_index=None)
        empty.update(text_frames=[], partial_frames=(-1, -1))
        self.beams = [CTCBeam(**empty, score=0.0, score_ctc=0.0, p_b=0.0)]
        self.word_scores: dict[tuple[str, bool], Any] = {}
        if search.lm is not None:
            self.word_scores["", False] = 0.0, search.lm.get_start_state()
        self.part_scores: dict[str, float] = {}

    def advance(self, frames: torch.Tensor) -> None:
        """Take (T, V) log-probabilities of the next frames."""
        self.heard.append(frames)
        rows = frames.clone()
        rows[:, list(NO_TEXT)] = -torch.inf
        best = self.beams[0]
        for row, index in zip(rows.cpu().numpy(), rows.argmax(-1).tolist()):
            before = best
            self.beams = self.search.partial_decoding(
                row[None],
                1,
                self.beams,
                self.word_scores,
                self.part_scores,
                self.frames,
            )
            best = self.beams[0]
            is_same = (
                best.partial_word == before.partial_word and best.text == before.text
            )
            self.silence = self.silence + 1 if is_same and index == BLANK_INDEX else 0
            self.frames += 1

    def readings(self) -> list[Hypothesis]:
        """Of all frames, the best first, before a neural language model had its say."""
        if self.found:
            return self.found
        beams = self.search.finalize_decoding(
            self.beams,
            self.word_scores,
            self.part_scores,
            force_next_word=True,
            is_end=True,
        )
        for beam in beams[: self.search.topk]:
            text = " ".join([*self.forgotten, *beam.text.split()])
            tokens = tuple(self.tokenizer.encode(text))
            self.found.append(Hypothesis(text, float(beam.lm_score), tokens))
        return self.found

    def finish(self) -> list[Hypothesis]:
        """The hypotheses, the best first, when no frame follows."""
        self.ended = True
        self.found = self.searcher.rescore(self.readings())
        return self.found[: self.searcher.nbest]

    def partial(self) -> tuple[Sequence[Token], str]:
        """What is known so far, see :meth:`Search.partial`."""
        known = super().partial()
        if not self.ended:
            self._forget()
        return known

    def readings_now(self) -> tuple[list[str], int]:
        """The words of the best reading, and with how many of them all begin."""
        best = f"{self.beams[0].text} {self.beams[0].partial_word}".split()
        # A word that all readings begin with is followed by a space in each of them.
        texts = [f"{beam.text} " for beam in self.beams]
        shared = os.path.commonprefix([min(texts), max(texts)])
        return best, len(shared[: shared.rfind(" ") + 1].split())

    def _forget(self):
        """Take final words out of the readings, but for those that still count."""
        best = self.beams[0].text.split()
        count = self.search.words_without_effect(tuple(best[: self.final]))
        if count < FORGET_WORDS:
            return
        self.search.forget(tuple(best[:count]))
        scores = {}
        for beam in self.beams:
            before = beam.text
            beam.text = " ".join(before.split()[count:])
            beam.text_frames = []
            if self.search.lm is not None:
                scores[beam.text, False] = self.word_scores[before, False]
        self.word_scores = scores
        self.part_scores.clear()
        self.forgotten += best[:count]
        self.final -= count


class _BiasedSearcher(CTCBeamSearcher):
    """SpeechBrain's search, with a bonus for hypotheses that hold certain phrases."""

    def __init__(self, phrases, bias, **options):
        super().__init__(**options)
        self.phrases = [tuple(phrase.split()) for phrase in phrases]
        self.bias = bias
        self.ended = False
        # The letters of phrases in the words that were forgotten.
        self.letters = 0
        # The hypotheses of a frame are mostly those of the frame before.
        self.matched = {}

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

    def _prune_history(self, beams, lm_order):
        """SpeechBrain's rule, without a copy of each hypothesis and all of its words.

        Of those with the same last words, which a language model sees, the best.
        """
        count, kept = max(1, lm_order - 1), {}
        for beam in beams:
            words = tuple(beam.text.rsplit(None, count)[-count:])
            kept.setdefault((words, beam.partial_word, beam.last_token), beam)
        return list(kept.values())

    def words_without_effect(self, words):
        """How many of the words that all hypotheses begin with change nothing more."""
        order = 1 if self.lm is None else self.lm.order
        longest = max(map(len, self.phrases), default=0)
        last = len(words) - max(1, order - 1, longest)
        places = (place for place, _ in self._parse(words) if place <= last)
        return max(places, default=0)

    def forget(self, words):
        """All hypotheses lose the words that they begin with."""
        self.letters += sum(_letters(phrase) for _, phrase in self._parse(words))
        self.matched.clear()

    def _parse(self, words):
        """Places of the words, and the longest phrase that begins there, maybe none."""
        position = 0
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
            yield position, whole
            position += len(whole) or 1

    def _letters_matched(self, text, partial):
        """Letters of complete phrases, and of a phrase that may be on its way."""
        words = tuple(text.split())
        # `free` is where the words begin that no complete phrase has taken.
        matched, free = self.letters, 0
        for position, whole in self._parse(words):
            if whole:
                matched, free = matched + _letters(whole), position + len(whole)
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


def _require_own_case(model, tokenizer, arpa):
    """Refuse a KenLM model in another letter case; its words can only be asked for."""
    pieces = list_pieces(tokenizer)[
        EOS_INDEX + 1 :
    ]  # a model has the marks in any case
    words = {piece.replace(WORD_START, "") for piece in pieces}
    others = {word.swapcase() for word in words} - words
    if not any(word in model for word in words) and any(w in model for w in others):
        raise ValueError(
            f"{arpa} is in another letter case than the recogniser writes: make it "
            "anew of text in the recogniser's case"
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
