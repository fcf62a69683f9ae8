"""Phones as a second task: CTC on an inner layer, with a pronunciation dictionary."""

import pathlib
import re
from collections.abc import Iterable, Sequence

import torch
from speechbrain.nnet.losses import ctc_loss
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.core.masks import relative_to_frames
from hyperconformer.core.text import normalize, read_text
from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.model.recognizer import log_probs
from hyperconformer.nn.linear import Linear
from hyperconformer.training.ctc_crf import estimate_trigrams, score_all_sequences

# WORD  PH PH ..., or WORD(2)  PH PH ... for another pronunciation; # a comment.
ENTRY = re.compile(r"(?P<word>\S+?)(\(\d+\))?\s+(?P<phones>[^\s#][^#]*)(#.*)?")


class PhoneCTC(nn.Module):
    """CTC on phones at an inner layer of the encoder, for training only.

    "Hierarchical multitask learning with CTC", Sanabria and Metze, 2018
    (arXiv:1807.06234), section 3.2: the loss becomes
    ``(1 - weight) * loss of the tokens + weight * CTC loss of the phones``.
    Letters say little about the sound of a word (``W`` is seven phones, ``ONE`` three).
    With little speech, phones teach the lower layers what letters cannot. The trained
    recogniser does not contain this head.

    Arguments
    ---------
    lexicon : str or pathlib.Path
        Pronunciation dictionary in CMU's format: a word and its phones on each line.
        The first of several pronunciations is used.
    d_model : int
        Width D of the encoder's frames.
    layer : int
        The layer whose output predicts phones; 1 is the first layer of the encoder.
    weight : float
        Weight of the phone loss, in (0, 1).
    pronunciations : dict of str to str, optional
        Pronunciations that replace those of the lexicon, as ``{A: EY}``.
    competition : float
        Weight of all phone sequences' log-probability, which is added to the phones'
        CTC loss, in [0, 1]: 0 is CTC, 1 is CTC-CRF
        (:mod:`hyperconformer.training.ctc_crf`). For models that CTC has trained.

    Raises
    ------
    FileNotFoundError
        If the lexicon does not exist.
    ValueError
        If it cannot be read, or a setting is out of range.
    """

    def __init__(
        self,
        lexicon: str | pathlib.Path,
        d_model: int,
        layer: int,
        weight: float,
        pronunciations: dict[str, str] | None = None,
        competition: float = 0.0,
    ):
        super().__init__()
        if layer < 1 or not 0 < weight < 1 or not 0 <= competition <= 1:
            raise ValueError(
                "layer must be >= 1, weight in (0, 1) and competition in [0, 1], got "
                f"layer = {layer}, weight = {weight} and competition = {competition}"
            )
        self.lexicon = lexicon
        self.layer, self.weight, self.competition = layer, weight, competition
        words = read_lexicon(self.lexicon)
        words.update(
            {
                normalize(word): phones.split()
                for word, phones in (pronunciations or {}).items()
            }
        )
        names = sorted({phone for phones in words.values() for phone in phones})
        self.phones = names
        number = {phone: index for index, phone in enumerate(names, BLANK_INDEX + 1)}
        self.words = {
            word: [number[phone] for phone in phones] for word, phones in words.items()
        }
        self.norm = nn.LayerNorm(d_model)
        self.head = Linear(d_model, len(names) + 1)

    def prepare(self, transcripts: Iterable[str], num_layers: int) -> None:
        """Check that the lexicon has every word, and the encoder the layer.

        With ``competition``, a trigram model of the transcripts' phones is estimated.

        Arguments
        ---------
        transcripts : iterable of str
            The training transcripts.
        num_layers : int
            Number of encoder layers.

        Raises
        ------
        ValueError
            If words or the layer are missing.
        """
        if self.layer > num_layers:
            raise ValueError(
                f"phone_ctc uses layer {self.layer}, but the encoder has {num_layers}"
            )
        sentences = [text.split() for text in transcripts]
        spoken = {word for words in sentences for word in words}
        missing = sorted(spoken - set(self.words))
        if missing:
            raise ValueError(
                f"{self.lexicon} lacks {len(missing)} words of the training set: "
                f"{', '.join(missing[:10])}"
            )
        if self.competition > 0:
            self.trigrams = estimate_trigrams(
                (self._spell(words) for words in sentences), len(self.phones)
            )

    def _spell(self, words):
        return [phone for word in words for phone in self.words[word]]

    def forward(
        self,
        hidden: Sequence[torch.Tensor],
        relative_lengths: torch.Tensor,
        transcripts: Sequence[str],
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Arguments
        ---------
        hidden : list of torch.Tensor
            The input and the output of every layer, each (B, T, D).
        relative_lengths : torch.Tensor
            (B,) lengths in (0, 1].
        transcripts : list of str
            One transcript per utterance, words separated by spaces.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        phones = [torch.tensor(self._spell(text.split())) for text in transcripts]
        counts = torch.tensor([len(one) for one in phones]).to(relative_lengths.device)
        targets = pad_sequence(phones, batch_first=True).to(hidden[0].device)
        # Layer drop leaves fewer layers.
        heard = hidden[min(self.layer, len(hidden) - 1)]
        scores = log_probs(self.head(self.norm(heard)))
        losses = ctc_loss(
            scores,
            targets,
            relative_lengths,
            counts / targets.shape[1],
            blank_index=BLANK_INDEX,
            reduction="none",
        )
        if self.competition > 0:
            lengths = relative_to_frames(relative_lengths, scores.shape[1])
            others = score_all_sequences(scores, lengths, self.trigrams)
            # Where the phones do not fit into the frames, the CTC loss is 0.
            others = torch.where(losses > 0, others, 0.0)
            losses = losses + self.competition * others
        return (losses / counts.clamp(min=1)).mean()


@register_checkpoint_hooks
class PhoneInventory:
    """The phones of a :class:`PhoneCTC`'s outputs, stored in a checkpoint.

    Arguments
    ---------
    phones : list of str
        The phones, in the order of the outputs after the blank.

    Example
    -------
    >>> import tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "phones.ckpt"
    >>> PhoneInventory(["AH", "B"])._save(file)
    >>> PhoneInventory(["B", "Z"])._load(file, end_of_epoch=True)
    Traceback (most recent call last):
        ...
    ValueError: the checkpoint was trained with other phones than the dictionary has: \
AH there, Z here; give the same one, or another --output_folder
    """

    def __init__(self, phones):
        self.phones = phones

    @mark_as_saver
    def _save(self, path):
        path.write_text("\n".join(self.phones), encoding="utf-8")

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        there = path.read_text(encoding="utf-8").split("\n")
        if there != self.phones:
            gone = sorted(set(there) - set(self.phones))
            new = sorted(set(self.phones) - set(there))
            raise ValueError(
                "the checkpoint was trained with other phones than the dictionary has: "
                f"{', '.join(gone) or 'none more'} there, "
                f"{', '.join(new) or 'none more'} here; give the same one, or another "
                "--output_folder"
            )


def read_lexicon(path):
    """Read a pronunciation dictionary.

    Arguments
    ---------
    path : str or pathlib.Path
        In CMU's format. Comments are lines that begin with ``;;;``, and text after
        ``#``.

    Returns
    -------
    dict of str to list of str
        The first pronunciation of each word.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If a line is malformed, or there is no entry.
    """
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no such pronunciation dictionary: {path}; name another one with "
            "--phone_ctc.lexicon=FILE, or train without phones with --phone_ctc=null"
        ) from error
    words = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(";;;"):
            continue
        entry = ENTRY.fullmatch(line.strip())
        if entry is None:
            raise ValueError(
                f"{path}:{number}: expected a word and its phones, got {line!r}"
            )
        words.setdefault(normalize(entry["word"]), entry["phones"].split())
    if not words:
        raise ValueError(f"{path} has no pronunciations")
    return words
