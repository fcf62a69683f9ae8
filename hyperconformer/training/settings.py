"""The keys that a training run reads from its YAML file.

Each field of a class here is one key: its type is checked, its default is that of the
shipped recipes, and the text below it says what it means. All other keys of a file must
be referred to by these, as ``d_model`` is by ``recognizer``.
"""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from hyperpyyaml import load_hyperpyyaml
from torch import nn

from hyperconformer.config import dump
from hyperconformer.core.annotations import check_type
from hyperconformer.corpora import load_corpus
from hyperconformer.search.base import Searcher
from hyperconformer.training.phones import PhoneCTC

Settings = TypeVar("Settings", bound="TrainingSettings")


def part(optional: bool = False) -> Any:
    """A key whose value YAML builds, with ``!new:`` or ``!name:``.

    Parts exist after :meth:`TrainingSettings.build` only: the model needs the number
    of tokens.

    Arguments
    ---------
    optional : bool
        Whether the file may leave it out; it is None then.
    """
    if optional:
        return dataclasses.field(init=False, default=None)
    return dataclasses.field(init=False)


@dataclasses.dataclass(kw_only=True)
class TrainingSettings:
    """The keys of every training run."""

    task: str = "asr"
    """What is trained: ``asr`` or ``language_model``."""

    seed: int = 1986
    """Of the weights, the order of the batches and all other draws."""

    output_folder: str
    """The run's folder."""

    corpus: str | Callable[..., Any]
    """A corpus of :mod:`hyperconformer.corpora`, or ``!name:`` and a function."""

    data_folder: str
    """The raw corpus."""

    corpus_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the corpus's function."""

    train_split: str = "train"
    """The split to train on."""

    valid_split: str = "valid"
    """The split that is evaluated after each epoch."""

    test_splits: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    """The splits that are evaluated at the end."""

    tokenizer_file: str | None = None
    """A SentencePiece model; None trains one on the training transcripts."""

    token_unit: str = "char"
    """Unit of a trained tokenizer: ``char``, ``unigram`` or ``bpe``."""

    vocab_size: int | None = 1000
    """Tokens of a trained tokenizer. Characters count themselves."""

    number_of_epochs: int
    """Passes over the training set."""

    max_updates: int | None = None
    """Training stops after so many updates, if that is earlier."""

    max_train_s: float | None = None
    """Training stops after so many seconds of updates, if that is earlier."""

    loader_workers: int = 0
    """Processes that load the batches; 0 = the training process itself."""

    grad_accumulation_factor: int = 1
    """Batches of one update."""

    max_grad_norm: float = 5.0
    """Longer gradients are shortened to this norm."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass; fp16 on GPUs only."""

    ckpt_interval_minutes: float = 15
    """Minutes between checkpoints inside an epoch."""

    epoch_counter: Any = part()
    """SpeechBrain's EpochCounter."""

    optimizer: Callable[..., Any] = part()
    """From parameters to an optimizer."""

    lr_schedule: Callable[..., Any] = part()
    """As :class:`hyperconformer.training.schedule.WarmupCosine`, or SpeechBrain's."""

    checkpointer: Any = part()
    """A :class:`hyperconformer.training.resume.WholeCheckpointer`."""

    train_logger: Any = part()
    """SpeechBrain's FileTrainLogger."""

    tensorboard: bool = False
    """Whether SpeechBrain's TensorboardLogger writes the same into ``tensorboard/``."""

    @property
    def tokens_from(self) -> str | None:
        """The model whose tokenizer the run takes over; None = none."""
        return None

    @property
    def evaluated_splits(self) -> list[str]:
        """The splits that are evaluated after the training, each once."""
        return list(dict.fromkeys([self.valid_split, *self.test_splits]))

    @classmethod
    def keys(cls) -> set[str]:
        """Return the keys that the run reads.

        Returns
        -------
        set of str
        """
        return {field.name for field in dataclasses.fields(cls)}

    @classmethod
    def read(cls: type[Settings], tree: dict[str, Any]) -> Settings:
        """Read all but the parts, and check the types.

        Arguments
        ---------
        tree : dict
            The YAML file as ruamel.yaml loads it, references resolved.

        Returns
        -------
        TrainingSettings

        Raises
        ------
        ValueError
            If a key is missing, its value is of another type, or values contradict
            each other.
        """
        for field in dataclasses.fields(cls):
            if _is_required(field) and field.name not in tree:
                raise ValueError(f"the key {field.name} is missing")
        for key in ("output_folder", "data_folder"):
            if tree[key] is None:
                raise ValueError(f"{key} must name a folder, got null")
        if tree.get("test_splits") == []:
            raise ValueError(
                "test_splits must name a split, got []; it may be valid_split"
            )
        values = {field.name for field in dataclasses.fields(cls) if field.init}
        values &= tree.keys() - {"corpus"}
        found = load_hyperpyyaml(dump({key: tree[key] for key in values}))
        found["corpus"] = load_corpus(dump({"corpus": tree["corpus"]}))
        cls._check(found)
        return cls(**found)

    def build(self, text: str, vocab_size: int) -> None:
        """Build the parts, for a number of tokens.

        Arguments
        ---------
        text : str
            HyperPyYAML text, from :func:`hyperconformer.config.read_config`.
        vocab_size : int
            Number of tokens.

        Raises
        ------
        ValueError
            If a part is of another type.
        """
        # Not only the parts: other keys may refer to the number of tokens.
        found = load_hyperpyyaml(text, {"vocab_size": vocab_size})
        self._check(found)
        for key in self.keys() & found.keys():
            setattr(self, key, found[key])

    def as_dict(self) -> dict[str, Any]:
        """Return every key and its value, once the parts are built.

        Returns
        -------
        dict of str to object
        """
        return {key: getattr(self, key) for key in sorted(self.keys())}

    @classmethod
    def _check(cls, found):
        types = typing.get_type_hints(cls)
        for key in cls.keys() & found.keys():
            check_type(key, found[key], types[key])


def _is_required(field):
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


@dataclasses.dataclass(kw_only=True)
class ASRSettings(TrainingSettings):
    """The keys of the training of a recogniser."""

    init_from: str | None = None
    """The model whose weights, tokens and feature statistics training begins with: a
    model folder, another run's folder, or the name of a shipped model."""

    new_head: bool = False
    """Whether only the encoder of ``init_from`` is taken, for other tokens."""

    train_fraction: float = 1.0
    """Part of the training utterances, drawn by the seed, in (0, 1]."""

    sample_rate: int = 16000
    """In Hz."""

    max_duration_s: float | None = 30.0
    """Longer training utterances are left out; None keeps all."""

    normalization_utterances: int = 2000
    """Training utterances on which the feature statistics are measured."""

    augment_from_epoch: int = 3
    """The first epoch with augmentation of any kind."""

    join_fraction: float = 0.0
    """Part of the training utterances that is joined in pairs, in [0, 1]."""

    max_batch_s: float = 40.0
    """Seconds of audio in a batch, padding included."""

    max_batch_utterances: int = 16
    """Utterances in a batch at most."""

    test_chunks_ms: list[float | None] = dataclasses.field(
        default_factory=lambda: [None]
    )
    """The test sets are decoded once with each of these chunks; None = whole
    utterances."""

    test_left_context_ms: float | None = None
    """Speech that a chunk sees before itself; None = all."""

    test_right_context_ms: float = 0.0
    """Speech that a chunk sees after itself."""

    ctc_weight: float = 0.3
    """Weight of CTC beside a decoder or a transducer."""

    consistency_weight: float = 0.0
    """Above 0, two augmented views of an utterance must agree (arXiv:2410.05101)."""

    avg_checkpoints: int = 5
    """The last checkpoints, whose weights are averaged for the evaluation."""

    cost_lengths_s: list[float] = dataclasses.field(default_factory=list)
    """Seconds of audio whose time and memory are measured at the end."""

    extractor: nn.Module = part()
    """A :class:`hyperconformer.FeatureExtractor`."""

    recognizer: nn.Module = part()
    """A :class:`hyperconformer.Recognizer`."""

    wav_augment: Callable[..., Any] | None = part(optional=True)
    """Augmentation of samples, as SpeechBrain's Augmenter."""

    feature_augment: Callable[..., Any] | None = part(optional=True)
    """Augmentation of features, as SpeechBrain's Augmenter."""

    dynchunktrain_config_sampler: Callable[..., Any] = part()
    """A :class:`hyperconformer.ChunkSampler`: the chunks of each batch."""

    ctc_cost: Callable[..., Any] = part()
    """The CTC loss, with SpeechBrain's arguments."""

    seq_cost: Callable[..., Any] = part()
    """The loss of the attention decoder, with SpeechBrain's arguments."""

    phone_ctc: PhoneCTC | None = part(optional=True)
    """A second task on phones."""

    test_search: Searcher | None = part(optional=True)
    """The search of the evaluation; None = greedy CTC."""

    error_rate_computer: Callable[..., Any] = part()
    """SpeechBrain's ErrorRateStats."""

    @property
    def tokens_from(self) -> str | None:
        """The model whose tokenizer the run takes over; None = none."""
        return None if self.new_head else self.init_from

    def __post_init__(self):
        if self.new_head and self.init_from is None:
            raise ValueError(
                "new_head goes with init_from, which is null: a new model has no head "
                "to replace"
            )


@dataclasses.dataclass(kw_only=True)
class LanguageModelSettings(TrainingSettings):
    """The keys of the training of a language model."""

    task: str = "language_model"

    train_texts: list[str] = dataclasses.field(default_factory=list)
    """Text files to train on beside the transcripts, one sentence a line."""

    max_batch_tokens: int = 2000
    """Tokens in a batch, padding included."""

    max_batch_sentences: int = 64
    """Sentences in a batch at most."""

    language_model: nn.Module = part()
    """From (B, T) tokens to (B, T, V) logits of the next ones."""
