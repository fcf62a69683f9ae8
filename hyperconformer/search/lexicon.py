"""CTC beam search over the words of a lexicon, with a large n-gram model."""

import collections
import copy
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch import nn

from hyperconformer.core.extras import MissingExtraError, import_extra
from hyperconformer.core.text import read_text, write_all, write_hotword
from hyperconformer.core.tokens import BLANK_INDEX, NO_TEXT, WORD_START
from hyperconformer.core.words import Hypothesis
from hyperconformer.lm.pronunciation import pronounce_variants
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.base import BeamSearch, Search, Searcher
from hyperconformer.search.rescoring import Rescorer

# A logarithm that flashlight can add up; it orders infinite ones by chance.
IMPOSSIBLE = -1e9
# The most words of one spelling that flashlight keeps.
MAX_HOMOPHONES = 6
# After so many frames, flashlight is made to forget what all hypotheses share. It takes
# 11 MB a second otherwise, and slows down.
PRUNE_FRAMES = 50
# A segment of more frames is cut between two words, and searched on from there.
MAX_FRAMES = 1500
# The words of so many of its last frames may still change at such a cut.
OPEN_FRAMES = 50
PURPOSE = "lexicon searches"
# Where no word fits.
NOTHING = Hypothesis("", -math.inf)


class LexiconSearcher(Searcher):
    """flashlight-text's CTC beam search with a KenLM n-gram model of words.

    A hypothesis consists of words of the lexicon. An alignment's score is its CTC
    log-probability, plus ``lm_weight`` times the n-gram model's log-probability of the
    words, plus ``word_bonus`` for each word. Alignments that end in one state of the
    n-gram model are summed; their hypothesis has the words of the likeliest.

    The search runs in C++: on a model of millions of n-grams it is much faster than
    :class:`~hyperconformer.search.ctc_beam.CTCSearcher`, which can write any word.

    In a stream, the words with which every hypothesis of the beam begins are final. A
    segment without a pause for a minute is cut between two words: what was said before
    is final then, and the n-gram model begins anew.

    Needs ``pip install "hyperconformer[lm]"``.

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
    hotwords : iterable of str
        Words or phrases to favour. Words that the lexicon lacks are added to it.
    hotword_bonus : float
        Added for each token of a word of a hot phrase, in natural logarithms, at least
        0: of long words, more is misheard, and fewer others sound alike. Such a word is
        also at least as likely as 1 in 1000 to the n-gram model.
    lm_folder, rescore_weight
        A neural language model that orders the best hypotheses anew, and its weight, at
        least 0, see :class:`~hyperconformer.search.rescoring.Rescorer`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If a setting is out of range, or a binary model comes without a word list.
    """

    # How many tokens continue a hypothesis at a frame; None = all.
    frame_tokens: ClassVar[int | None] = None
    # How many of the best hypotheses are ordered anew.
    rescored: ClassVar[int] = 50

    def __init__(
        self,
        arpa: str | pathlib.Path,
        words: str | pathlib.Path | None = None,
        lm_weight: float = 0.5,
        word_bonus: float = 1.0,
        beam_size: int = 200,
        beam_threshold: float = 40.0,
        nbest: int = 1,
        hotwords: Iterable[str] = (),
        hotword_bonus: float = 1.5,
        lm_folder: str | pathlib.Path | None = None,
        rescore_weight: float = 0.5,
    ):
        if not 1 <= nbest <= beam_size:
            raise ValueError(
                f"nbest must be from 1 to beam_size = {beam_size}, got {nbest}"
            )
        for name, weight in (
            ("lm_weight", lm_weight),
            ("hotword_bonus", hotword_bonus),
            ("rescore_weight", rescore_weight),
        ):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {weight}")
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
        self.hotwords, self.hotword_bonus = tuple(hotwords), hotword_bonus
        self.rescorer = (
            None if lm_folder is None else Rescorer(lm_folder, rescore_weight)
        )
        self.new_decoder: Callable[[], tuple[Any, Any]]

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
            If the recogniser cannot write the words, the n-gram model cannot be read,
            or a hot word has no pronunciation.
        """
        kenlm = import_extra("kenlm", "lm", PURPOSE)
        if self.rescorer is not None:
            self.rescorer.check_letters(tokenizer)
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
        self.size, self.separator = self._alphabet(tokenizer)
        self.spellings = {
            written: self._spellings(written, tokens, entries[word])
            for written, (word, tokens) in spelled.items()
        }
        # As the n-gram model writes them.
        self.listed = [word for word, _ in spelled.values()]
        try:
            self.model = kenlm.Model(str(self.arpa))
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.arpa} is no n-gram model: {error}") from error
        self._build(tokenizer)

    def favour(
        self, hotwords: Iterable[str], tokenizer: SentencePieceProcessor
    ) -> "LexiconSearcher":
        """A copy that favours hot words.

        Preparing another search would read the lexicon again, which takes seconds.

        Raises
        ------
        ValueError
            If a hot word cannot be written or has no pronunciation.
        """
        search = copy.copy(self)
        search.hotwords = tuple(hotwords)
        search._build(tokenizer)
        return search

    def _build(self, tokenizer):
        """Make what makes decoders, of the lexicon and the hot words."""
        flashlight = import_extra("flashlight.lib.text.decoder", "lm", PURPOSE)
        # The module needs the extra.
        from hyperconformer.lm.recombination import NGramLM

        phrases = [write_hotword(one, tokenizer).split() for one in self.hotwords]
        hot = {word for phrase in phrases for word in phrase}
        new = sorted(hot - self.spellings.keys())
        added = self._spell_new(new, tokenizer) if new else {}
        spellings = {**self.spellings, **added}
        self.written, words = list(spellings), [*self.listed, *new]
        number = {word: index for index, word in enumerate(self.written)}
        lm_options = {
            "weight": self.lm_weight,
            "phrases": [tuple(number[word] for word in phrase) for phrase in phrases],
            "bonuses": {
                number[word]: self.hotword_bonus * min(map(len, spellings[word]))
                for word in hot
            },
        }
        lm = NGramLM(self.model, words, **lm_options)
        scores = [lm.first(word) for word in range(len(words))]
        trie = flashlight.Trie(self.size, self.separator)
        # flashlight keeps MAX_HOMOPHONES words of one spelling: the likeliest.
        homophones: collections.Counter[tuple[int, ...]] = collections.Counter()
        for number in sorted(range(len(scores)), key=scores.__getitem__, reverse=True):
            for tokens in spellings[self.written[number]]:
                homophones[tokens] += 1
                if homophones[tokens] <= MAX_HOMOPHONES:
                    trie.insert(list(tokens), number, scores[number])
        # A word that has just begun is scored by the best word that begins so.
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=self.beam_size,
            beam_size_token=self.frame_tokens or self.size,
            beam_threshold=self.beam_threshold,
            lm_weight=1.0,  # NGramLM has weighted them
            word_score=self.word_bonus,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=True,  # the likeliest alignment alone has more errors
            criterion_type=flashlight.CriterionType.CTC,
        )
        no_word = -1  # every hypothesis consists of words of the lexicon

        def new_decoder():
            lm = NGramLM(self.model, words, **lm_options)
            return lm, flashlight.LexiconDecoder(
                options, trie, lm, self.separator, BLANK_INDEX, no_word, [], False
            )

        self.new_decoder = new_decoder

    def begin(self, tokenizer: SentencePieceProcessor) -> Search:
        """See :meth:`Searcher.begin`."""
        return LexiconSearch(tokenizer, self)

    def order(
        self, found: list[Hypothesis], frames: Sequence[torch.Tensor]
    ) -> list[Hypothesis]:
        """Of all that the search has found in the frames, the ``nbest`` best."""
        found = found[: max(self.rescored, self.nbest)]
        if found and frames:
            found = self.rescore(found, torch.cat([*frames]))
        return found[: self.nbest]

    def rescore(
        self, found: list[Hypothesis], frames: torch.Tensor
    ) -> list[Hypothesis]:
        """Order hypotheses anew by what the search did not ask."""
        return found if self.rescorer is None else self.rescorer.rescore(found)

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

    def _spell_new(self, words, tokenizer):
        """The spellings of words that are not in the lexicon."""
        return {
            word: self._spellings(word, tokens, [])
            for word, tokens in zip(words, tokenizer.encode(words))
        }

    def _spellings(self, word, tokens, pronunciations):
        """The spellings of a word, tuples of tokens; ``tokens`` are its letters."""
        # The tokenizer writes the space before a word, flashlight after it.
        return [(*tokens[1:], self.space)]

    def letters(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, V) log-probabilities of the CTC head."""
        return frames

    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, V') log-probabilities of the tokens that words are spelled with."""
        frames = frames.float().cpu().clone()
        frames[:, list(NO_TEXT)] = IMPOSSIBLE
        return frames

    def ending(self) -> torch.Tensor:
        """The rows after those of :meth:`log_probs` when the utterance is over."""
        # The space after the last word is not in the speech.
        end = torch.full((1, self.size), IMPOSSIBLE)
        end[0, self.space] = 0.0
        return end


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
    beam_size, beam_threshold, **settings
        As for :class:`LexiconSearcher`.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the recogniser has no phone head, or a setting is out of range.
    """

    takes: ClassVar[Literal["ctc", "encoded"]] = "encoded"
    frame_tokens: ClassVar[int | None] = 10  # of 40: most of the time is theirs

    def __init__(
        self,
        recognizer: Recognizer,
        arpa: str | pathlib.Path,
        words: str | pathlib.Path,
        letters_weight: float = 0.4,
        beam_size: int = 1000,
        beam_threshold: float = 14.0,
        **settings: Any,
    ):
        if not recognizer.phones:
            raise ValueError("a phone search needs a recogniser with a phone head")
        if not letters_weight >= 0:
            raise ValueError(f"letters_weight must be >= 0, got {letters_weight}")
        super().__init__(
            arpa,
            words,
            beam_size=beam_size,
            beam_threshold=beam_threshold,
            **settings,
        )
        self.recognizer, self.letters_weight = recognizer, letters_weight
        self.phone_numbers = {
            phone: number
            for number, phone in enumerate(recognizer.phones, BLANK_INDEX + 1)
        }

    def rescore(
        self, found: list[Hypothesis], frames: torch.Tensor
    ) -> list[Hypothesis]:
        """Order hypotheses anew by their letters, and by the neural language model."""
        letters = self.letters(frames)
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
        ordered = [
            dataclasses.replace(one, score=one.score - self.letters_weight * loss)
            for one, loss in zip(found, losses.tolist())
        ]
        ordered.sort(key=lambda one: one.score, reverse=True)
        return super().rescore(ordered, frames)

    @torch.no_grad()
    def letters(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, V) log-probabilities of the CTC head."""
        return self.recognizer.ctc_log_probs(frames).float().cpu()

    def _alphabet(self, tokenizer):
        # Nothing ends a word; between words the search waits at the blank.
        return len(self.recognizer.phones) + 1, BLANK_INDEX

    def _spell_new(self, words, tokenizer):
        try:
            found = pronounce_variants(words)
        except MissingExtraError as error:
            raise ValueError(
                f"the hot words {', '.join(words)} are not in {self.words}: {error}"
            ) from error
        return {word: self._spellings(word, [], found[word]) for word in words}

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

    @torch.no_grad()
    def log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """(T, number of phones + 1) log-probabilities of the phone head."""
        log_probs = self.recognizer.phone_log_probs(frames).float().cpu().clone()
        # Frames of digital silence are zeros, and say nothing.
        silent = (frames == 0).all(-1).cpu()
        log_probs[silent] = IMPOSSIBLE
        log_probs[silent, BLANK_INDEX] = 0.0
        return log_probs.contiguous()

    def ending(self) -> torch.Tensor:
        """The rows after those of :meth:`log_probs`: none."""
        return torch.empty(0, self.size)


class LexiconSearch(BeamSearch):
    """One utterance, or one segment of a stream, in flashlight's search.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        The recogniser's.
    searcher : LexiconSearcher
        What is the same for all of them.
    """

    def __init__(self, tokenizer: SentencePieceProcessor, searcher: LexiconSearcher):
        super().__init__(tokenizer)
        self.searcher = searcher
        self._restart()

    def _restart(self):
        """With nothing searched; ``taken`` holds the frames since then."""
        # The decoder calls the Python object, but does not keep it.
        self.lm, self.decoder = self.searcher.new_decoder()
        self.decoder.decode_begin()
        self.taken: list[torch.Tensor] = []
        self.searched = 0
        # What the decoder was made to forget: frames, words and their score.
        self.pruned, self.pruned_words, self.pruned_score = 0, [], 0.0

    def advance(self, frames: torch.Tensor) -> None:
        """Take (T, V) log-probabilities or (T, D) frames, as the searcher takes."""
        while len(frames) > 0:
            count = PRUNE_FRAMES - self.searched % PRUNE_FRAMES
            new, frames = frames.tensor_split([count])
            self.heard.append(self.searcher.letters(new))
            rows = self._search(new)
            self.frames += len(rows)
            spoken = (rows.argmax(-1) != BLANK_INDEX).nonzero()
            quiet = len(rows) - 1 - int(spoken[-1]) if len(spoken) else None
            self.silence = self.silence + len(rows) if quiet is None else quiet
            if self.searched % PRUNE_FRAMES == 0:
                self._prune()
            if self.searched >= MAX_FRAMES:
                self._cut()

    def _search(self, frames):
        rows = self.searcher.log_probs(frames)
        self.decoder.decode_step(rows.data_ptr(), *rows.shape)
        self.taken.append(frames)
        self.searched += len(frames)
        return rows

    def _prune(self):
        """Forget the frames up to the last word that is the same in all readings."""
        results = self._results()
        words = np.array([result.words for result in results])
        differ = (words != words[:1]).any(axis=0)
        # flashlight prunes to the frame after a word, so the last one stays.
        differ[-1] = True
        same = words[0, : differ.argmax()]
        ends = np.flatnonzero(same >= 0)
        if len(ends) == 0:
            return
        count = int(ends[-1]) + 1  # number 0 stands before the first frame
        self.decoder.prune(words.shape[1] - 1 - count)
        self.pruned += count
        self.pruned_words += self._words(same)
        # flashlight makes the best score 0.
        self.pruned_score += max(result.score for result in results)

    def _cut(self):
        """Make all but the last frames final, as the best reading has them."""
        best = max(self._results(), key=lambda result: result.score)
        last = max(0, self.searched - self.pruned - OPEN_FRAMES)
        # Number 0 is the frame after the last word that is forgotten.
        place = max(
            (place for place, word in enumerate(best.words[: last + 1]) if word >= 0),
            default=-1 if self.pruned else last,
        )
        waits = (BLANK_INDEX, self.searcher.separator)
        while place < last and best.tokens[place + 1] in waits:
            place += 1
        done = self.pruned_words + self._words(best.words[: place + 1])
        words = self.pruned_words + self._words(best.words)
        self.make_final(words, len(done))
        self.forgotten += done
        self.final = 0
        rest = torch.cat(self.taken)[self.pruned + place :]
        self._restart()
        self._search(rest)

    def _results(self):
        return self.decoder.get_all_final_hypothesis()

    def _words(self, numbers):
        return [self.searcher.written[number] for number in numbers if number >= 0]

    def readings_now(self) -> tuple[list[str], int]:
        """The words of the best reading, and with how many of them all begin."""
        results = self._results()
        best = max(results, key=lambda result: result.score, default=None)
        if best is None or best.score < IMPOSSIBLE / 2:
            return [], 0
        shared = os.path.commonprefix([self._words(one.words) for one in results])
        words = self.pruned_words + self._words(best.words)
        return words, len(self.pruned_words) + len(shared)

    def finish(self) -> list[Hypothesis]:
        """The hypotheses, the best first, when no frame follows.

        With different words; an empty text where no word fits.
        """
        if self.ended:
            return self.found
        self.ended = True
        rows = self.searcher.ending()
        self.decoder.decode_step(rows.data_ptr(), *rows.shape)
        self.decoder.decode_end()
        found: dict[str, Hypothesis] = {}
        for result in self._results():
            if result.score < IMPOSSIBLE / 2:
                break
            text = " ".join(self.pruned_words + self._words(result.words))
            if text not in found:
                tokens = tuple(self.tokenizer.encode(text))
                score = self.pruned_score + result.score
                found[text] = Hypothesis(text, score, tokens)
        ordered = self.searcher.order([*found.values()], self.taken)
        self.found = [self._whole(one) for one in ordered or [NOTHING]]
        return self.found

    def _whole(self, hypothesis):
        """With the words that were final at a cut; the score is of the rest."""
        if not self.forgotten:
            return hypothesis
        text = " ".join([*self.forgotten, hypothesis.text]).strip()
        tokens = tuple(self.tokenizer.encode(text))
        return dataclasses.replace(hypothesis, text=text, tokens=tokens)


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
