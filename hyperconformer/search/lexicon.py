"""CTC beam search over the words of a lexicon, with a large n-gram model."""

import collections
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from sentencepiece import SentencePieceProcessor
from torch import nn

from hyperconformer.core.extras import import_extra
from hyperconformer.core.text import read_text, write_all
from hyperconformer.core.tokens import BLANK_INDEX, NO_TEXT, WORD_START
from hyperconformer.core.words import Hypothesis
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.base import Searcher

# A logarithm that flashlight can add up; it orders infinite ones by chance.
IMPOSSIBLE = -1e9
# The most words of one spelling that flashlight keeps.
MAX_HOMOPHONES = 6


class LexiconSearcher(Searcher):
    """flashlight-text's CTC beam search with a KenLM n-gram model of words.

    A hypothesis consists of words of the lexicon. Its score is its best alignment's
    CTC log-probability, plus ``lm_weight`` times the n-gram model's log-probability,
    plus ``word_bonus`` for each word. The search runs in C++: on a model of millions
    of n-grams it is much faster than
    :class:`~hyperconformer.search.ctc_beam.CTCSearcher`, which can write any word.

    It decodes whole utterances only, no streams. Needs
    ``pip install "hyperconformer[lm]"``.

    Arguments
    ---------
    arpa : str or pathlib.Path
        The n-gram model: an ARPA file, or KenLM's binary form.
    words : str or pathlib.Path, optional
        The lexicon, one word a line. Only :class:`PhoneSearcher` reads the phones after
        a word. None = the words of the ARPA file.
    lm_weight : float
        Weight of the n-gram model, at least 0.
    word_bonus : float
        Added for each word, in natural logarithms.
    beam_size : int
        Hypotheses that are kept, at least 1.
    beam_threshold : float
        Hypotheses that are worse than the best by more are dropped.
    nbest : int
        Hypotheses that are returned, from 1 to ``beam_size``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a setting is out of range, or a binary model comes without a word list.
    """

    streams: ClassVar[bool] = False
    # How many tokens continue a hypothesis at a frame; None = all.
    frame_tokens: ClassVar[int | None] = None

    def __init__(
        self,
        arpa: str | pathlib.Path,
        words: str | pathlib.Path | None = None,
        lm_weight: float = 0.5,
        word_bonus: float = 1.0,
        beam_size: int = 200,
        beam_threshold: float = 40.0,
        nbest: int = 1,
    ):
        if not 1 <= nbest <= beam_size:
            raise ValueError(
                f"nbest must be from 1 to beam_size = {beam_size}, got {nbest}"
            )
        if not lm_weight >= 0:
            raise ValueError(f"lm_weight must be >= 0, got {lm_weight}")
        if not beam_threshold > 0:
            raise ValueError(f"beam_threshold must be > 0, got {beam_threshold}")
        self.arpa = pathlib.Path(arpa)
        self.words = None if words is None else pathlib.Path(words)
        for path in (self.arpa, self.words):
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"no such file: {path}")
        if self.words is None and self.arpa.suffix != ".arpa":
            raise ValueError(
                f"{self.arpa} is not named *.arpa: give its words as a text file too, "
                "one a line"
            )
        self.lm_weight, self.word_bonus = lm_weight, word_bonus
        self.beam_size, self.beam_threshold = beam_size, beam_threshold
        self.nbest = nbest
        self.decoder: Any = None

    @property
    def ngram(self) -> dict[str, Any]:
        """The options that bring the n-gram model, for a model folder to keep."""
        words = {} if self.words is None else {"words": self.words}
        return {
            "arpa": self.arpa,
            **words,
            "lm_weight": self.lm_weight,
            "word_bonus": self.word_bonus,
        }

    def prepare(
        self,
        tokenizer: SentencePieceProcessor,
        sentences: Sequence[str] = (),
        folder: str | pathlib.Path | None = None,
    ) -> None:
        """Build the decoder for a recogniser.

        Arguments
        ---------
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's. It spells the words.
        sentences : list of str
            Training transcripts; not needed here.
        folder : str or pathlib.Path
            The run's folder; not needed here.

        Raises
        ------
        MissingExtraError
            If flashlight-text or KenLM is not installed.
        ValueError
            If the recogniser cannot write the words, or the n-gram model cannot be
            read.
        """
        purpose = "lexicon searches"
        import_extra("kenlm", "lm", purpose)
        flashlight = import_extra("flashlight.lib.text.decoder", "lm", purpose)
        kenlm = import_extra("flashlight.lib.text.decoder.kenlm", "lm", purpose)
        dictionary = import_extra("flashlight.lib.text.dictionary", "lm", purpose)
        entries = _read_entries(self.words or self.arpa)
        listed = list(entries)
        forms = write_all(listed, tokenizer, self.arpa)
        unknown = tokenizer.unk_id()
        spelled = {
            written: (word, tokens)
            for word, written, tokens in zip(listed, forms, tokenizer.encode(forms))
            if unknown not in tokens
        }
        if not spelled:
            raise ValueError(
                f"the recogniser can write none of the {len(listed)} words of "
                f"{self.words or self.arpa}: it is no model for this recogniser"
            )
        self.written = list(spelled)
        size, separator = self._alphabet(tokenizer)
        spellings = [
            self._spellings(written, tokens, entries[word])
            for written, (word, tokens) in spelled.items()
        ]
        numbers = dictionary.Dictionary()
        for word, _ in spelled.values():
            numbers.add_entry(word)
        try:
            self.lm = kenlm.KenLM(str(self.arpa), numbers)
        except RuntimeError as error:
            raise ValueError(f"{self.arpa} is no n-gram model: {error}") from error
        trie = flashlight.Trie(size, separator)
        start = self.lm.start(False)
        scores = [self.lm.score(start, number)[1] for number in range(len(spelled))]
        # flashlight keeps MAX_HOMOPHONES words of one spelling: the likeliest.
        homophones: collections.Counter[tuple[int, ...]] = collections.Counter()
        for number in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
            for tokens in spellings[number]:
                homophones[tokens] += 1
                if homophones[tokens] <= MAX_HOMOPHONES:
                    trie.insert(list(tokens), number, scores[number])
        # A word that has just begun is scored by the best word that begins so.
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=self.beam_size,
            beam_size_token=self.frame_tokens or size,
            beam_threshold=self.beam_threshold,
            lm_weight=self.lm_weight * math.log(10),  # KenLM's logarithms are decimal
            word_score=self.word_bonus,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=flashlight.CriterionType.CTC,
        )
        no_word = -1  # every hypothesis consists of words of the lexicon
        self.decoder = flashlight.LexiconDecoder(
            options, trie, self.lm, separator, BLANK_INDEX, no_word, [], False
        )

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """Decode one utterance.

        Arguments
        ---------
        frames : torch.Tensor
            (T, V) or (T, D), see ``takes``.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of Hypothesis
            At most ``nbest`` with different words, the best first. An empty text where
            no word fits.
        """
        return self._best(frames, tokenizer, self.nbest)

    def _best(self, frames, tokenizer, most):
        """Decode one utterance to at most ``most`` hypotheses."""
        frames = self._log_probs(frames)
        found: dict[str, Hypothesis] = {}
        for result in self.decoder.decode(frames.data_ptr(), *frames.shape):
            if result.score < IMPOSSIBLE / 2 or len(found) == most:
                break
            text = " ".join(self.written[word] for word in result.words if word >= 0)
            if text not in found:
                tokens = tuple(tokenizer.encode(text))
                found[text] = Hypothesis(text, result.score, tokens)
        return list(found.values()) or [Hypothesis("", -math.inf)]

    def _alphabet(self, tokenizer):
        """How many tokens words are spelled with, and the one that ends a word."""
        self.space = tokenizer.piece_to_id(WORD_START)
        joined = [
            piece
            for piece in map(tokenizer.id_to_piece, range(tokenizer.vocab_size()))
            if WORD_START in piece and piece != WORD_START
        ]
        if joined:
            raise ValueError(
                "the lexicon search needs a recogniser of characters (token_unit: "
                f"char); this one has sub-words, such as {joined[0]}"
            )
        return tokenizer.vocab_size(), self.space

    def _spellings(self, word, tokens, pronunciations):
        """The spellings of a word, tuples of tokens; ``tokens`` are its letters."""
        # The tokenizer writes the space before a word, flashlight after it.
        return [(*tokens[1:], self.space)]

    def _log_probs(self, frames):
        """(T', V) log-probabilities of the tokens that words are spelled with."""
        frames = frames.float().cpu().clone()
        frames[:, list(NO_TEXT)] = IMPOSSIBLE
        # The space after the last word is not in the speech.
        end = frames.new_full((1, frames.shape[1]), IMPOSSIBLE)
        end[0, self.space] = 0.0
        return torch.cat([frames, end])


class PhoneSearcher(LexiconSearcher):
    """The same search by the phones of the words, for a recogniser with a phone head.

    English letters say little about sounds: with little training speech, words are
    found with fewer errors by their pronunciations. "EESEN: End-to-End Speech
    Recognition using Deep RNN Models and WFST-based Decoding", 2015
    (arXiv:1507.08240).

    The best ``rescored`` hypotheses by phones are ordered anew by their score plus
    ``letters_weight`` times the CTC log-probability of their letters: the two heads
    make different errors.

    Arguments
    ---------
    recognizer : hyperconformer.model.recognizer.Recognizer
        With a phone head.
    arpa : str or pathlib.Path
        The n-gram model.
    words : str or pathlib.Path
        The lexicon: a word and its phones a line, a word's further pronunciations in
        further lines.
    letters_weight : float
        At least 0.
    beam_size, **settings
        As for :class:`LexiconSearcher`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the recogniser has no phone head, or a setting is out of range.
    """

    takes: ClassVar[Literal["ctc", "encoded"]] = "encoded"
    frame_tokens: ClassVar[int | None] = 8  # with all 40: four times the time
    rescored: ClassVar[int] = 50

    def __init__(
        self,
        recognizer: Recognizer,
        arpa: str | pathlib.Path,
        words: str | pathlib.Path,
        letters_weight: float = 0.4,
        beam_size: int = 300,
        **settings: Any,
    ):
        if not recognizer.phones:
            raise ValueError("a phone search needs a recogniser with a phone head")
        if not letters_weight >= 0:
            raise ValueError(f"letters_weight must be >= 0, got {letters_weight}")
        super().__init__(arpa, words, beam_size=beam_size, **settings)
        self.recognizer, self.letters_weight = recognizer, letters_weight
        self.phone_numbers = {
            phone: number
            for number, phone in enumerate(recognizer.phones, BLANK_INDEX + 1)
        }

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """Decode one utterance; see :meth:`Searcher.decode`."""
        found = self._best(frames, tokenizer, max(self.rescored, self.nbest))
        with torch.no_grad():
            letters = self.recognizer.ctc_log_probs(frames).float().cpu()
        counts = torch.tensor([len(one.tokens) for one in found])
        losses = nn.functional.ctc_loss(
            letters[:, None].expand(-1, len(found), -1),
            torch.tensor([token for one in found for token in one.tokens]).long(),
            torch.full_like(counts, len(letters)),
            counts,
            blank=BLANK_INDEX,
            reduction="none",
        )
        # What the frames are too few to spell has an infinite loss, and comes last.
        scores = [
            one.score - self.letters_weight * loss
            for one, loss in zip(found, losses.tolist())
        ]
        order = sorted(range(len(found)), key=scores.__getitem__, reverse=True)
        return [
            dataclasses.replace(found[i], score=scores[i]) for i in order[: self.nbest]
        ]

    def _alphabet(self, tokenizer):
        # Nothing ends a word; between words the search waits at the blank.
        return len(self.recognizer.phones) + 1, BLANK_INDEX

    def _spellings(self, word, tokens, pronunciations):
        numbers = self.phone_numbers
        phones = {phone for one in pronunciations for phone in one}
        if not all(pronunciations) or not phones <= numbers.keys():
            unknown = sorted(phones - numbers.keys()) or ["none"]
            raise ValueError(
                f"{self.words}: the phones of {word} must be some of "
                f"{' '.join(numbers)}, got {', '.join(unknown)}"
            )
        return [tuple(numbers[phone] for phone in one) for one in pronunciations]

    def _log_probs(self, frames):
        with torch.no_grad():
            log_probs = self.recognizer.phone_log_probs(frames).float().cpu().clone()
        # Frames of digital silence are zeros, and say nothing.
        silent = (frames == 0).all(-1).cpu()
        log_probs[silent] = IMPOSSIBLE
        log_probs[silent, BLANK_INDEX] = 0.0
        return log_probs.contiguous()


def _read_entries(path: pathlib.Path) -> dict[str, list[list[str]]]:
    """The words of a list with their pronunciations, or of an ARPA file's unigrams."""
    lines: Iterable[str] = read_text(path).splitlines()
    if path.suffix == ".arpa":
        lines = itertools.dropwhile(lambda line: line.strip() != "\\1-grams:", lines)
        unigrams = itertools.takewhile(str.strip, itertools.islice(lines, 1, None))
        lines = (line.split("\t")[1] for line in unigrams if "\t" in line)
    entries: dict[str, list[list[str]]] = {}
    for line in lines:
        word, *phones = line.split() or [""]
        if word not in ("", "<s>", "</s>", "<unk>"):
            entries.setdefault(word, []).append(phones)
    return entries
