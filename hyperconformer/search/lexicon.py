"""CTC beam search over the words of a lexicon, with a large n-gram model."""

import itertools
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from sentencepiece import SentencePieceProcessor

from hyperconformer.core.extras import import_extra
from hyperconformer.core.text import read_text, unwritable, write_all
from hyperconformer.core.tokens import BLANK_INDEX, NO_TEXT, WORD_START
from hyperconformer.core.words import Hypothesis
from hyperconformer.search.base import Searcher

# A logarithm that flashlight can add up; it orders infinite ones by chance.
IMPOSSIBLE = -1e9


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
        The lexicon, one word a line. None = the words of the ARPA file.
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
        listed = _read_words(self.words or self.arpa)
        spelled = {
            written: word
            for written, word in zip(write_all(listed, tokenizer, self.arpa), listed)
            if not unwritable(written, tokenizer)
        }
        if not spelled:
            raise ValueError(
                f"the recogniser can write none of the {len(listed)} words of "
                f"{self.words or self.arpa}: it is no model for this recogniser"
            )
        self.written = list(spelled)
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
        numbers = dictionary.Dictionary()
        for word in spelled.values():
            numbers.add_entry(word)
        try:
            self.lm = kenlm.KenLM(str(self.arpa), numbers)
        except RuntimeError as error:
            raise ValueError(f"{self.arpa} is no n-gram model: {error}") from error
        trie = flashlight.Trie(tokenizer.vocab_size(), self.space)
        start = self.lm.start(False)
        for number, tokens in enumerate(tokenizer.encode(self.written)):
            _, score = self.lm.score(start, number)
            # The tokenizer writes the space before a word, flashlight after it.
            trie.insert([*tokens[1:], self.space], number, score)
        # A word that has just begun is scored by the best word that begins so.
        trie.smear(flashlight.SmearingMode.MAX)
        options = flashlight.LexiconDecoderOptions(
            beam_size=self.beam_size,
            beam_size_token=tokenizer.vocab_size(),
            beam_threshold=self.beam_threshold,
            lm_weight=self.lm_weight * math.log(10),  # KenLM's logarithms are decimal
            word_score=self.word_bonus,
            unk_score=-math.inf,
            sil_score=0.0,
            log_add=False,
            criterion_type=flashlight.CriterionType.CTC,
        )
        unknown = -1  # no word: every hypothesis consists of words of the lexicon
        self.decoder = flashlight.LexiconDecoder(
            options, trie, self.lm, self.space, BLANK_INDEX, unknown, [], False
        )

    def decode(
        self, frames: torch.Tensor, tokenizer: SentencePieceProcessor
    ) -> list[Hypothesis]:
        """Decode one utterance.

        Arguments
        ---------
        frames : torch.Tensor
            (T, V) log-probabilities.
        tokenizer : sentencepiece.SentencePieceProcessor
            The recogniser's.

        Returns
        -------
        list of Hypothesis
            At most ``nbest`` with different words, the best first. An empty text where
            no word fits.
        """
        frames = frames.float().cpu().clone()
        frames[:, list(NO_TEXT)] = IMPOSSIBLE
        # The space after the last word is not in the speech.
        end = frames.new_full((1, frames.shape[1]), IMPOSSIBLE)
        end[0, self.space] = 0.0
        frames = torch.cat([frames, end])
        found: dict[str, Hypothesis] = {}
        for result in self.decoder.decode(frames.data_ptr(), *frames.shape):
            if result.score < IMPOSSIBLE / 2 or len(found) == self.nbest:
                break
            text = " ".join(self.written[word] for word in result.words if word >= 0)
            if text not in found:
                tokens = tuple(tokenizer.encode(text))
                found[text] = Hypothesis(text, result.score, tokens)
        return list(found.values()) or [Hypothesis("", -math.inf)]


def _read_words(path: pathlib.Path) -> list[str]:
    """The words of a list, or of an ARPA file's unigrams, without its marks."""
    lines: Iterable[str] = read_text(path).splitlines()
    if path.suffix == ".arpa":
        lines = itertools.dropwhile(lambda line: line.strip() != "\\1-grams:", lines)
        unigrams = itertools.takewhile(str.strip, itertools.islice(lines, 1, None))
        lines = (line.split("\t")[1] for line in unigrams if "\t" in line)
    words = [line.strip() for line in lines if line.strip()]
    return [word for word in words if word not in ("<s>", "</s>", "<unk>")]
