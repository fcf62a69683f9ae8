"""From manifests to batches: tokenizer, datasets, loaders."""

import io
import pathlib
import random
import re
import zlib

import speechbrain as sb
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataio import load_data_csv
from speechbrain.dataio.dataset import (
    DynamicItemDataset,
    FilteredSortedDynamicItemDataset,
)
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.data_utils import batch_pad_right

from hyperconformer.audio import read_audio
from hyperconformer.core.files import write_atomically
from hyperconformer.core.messages import unknown
from hyperconformer.core.text import as_written, normalize
from hyperconformer.core.tokens import BOS_INDEX, EOS_INDEX

TOKEN_UNITS = ["char", "unigram", "bpe"]


def read_transcripts(manifest, tokenizer=None):
    """Return the transcripts of a manifest, normalised.

    Arguments
    ---------
    manifest : str or pathlib.Path
        CSV with the column ``wrd``.
    tokenizer : sentencepiece.SentencePieceProcessor, optional
        Normalise as for this tokenizer: :func:`hyperconformer.core.text.as_written`.
        None = as in :func:`hyperconformer.core.text.normalize`.

    Returns
    -------
    list of str
    """
    transcripts = [row["wrd"] for row in load_data_csv(str(manifest)).values()]
    if tokenizer is None:
        return [normalize(transcript) for transcript in transcripts]
    return [as_written(transcript, tokenizer) for transcript in transcripts]


def train_tokenizer(manifest, folder, unit, vocab_size):
    """Train SentencePiece on a manifest's transcripts.

    Arguments
    ---------
    manifest : str or pathlib.Path
        CSV with the column ``wrd``.
    folder : str or pathlib.Path
        Folder of the model, which replaces other models there.
    unit : str
        ``"char"``, ``"unigram"`` or ``"bpe"``.
    vocab_size : int
        Number of tokens; ignored for characters, which the text determines.

    Returns
    -------
    pathlib.Path
        The model. Token 0 is the unknown token, the CTC blank and the padding; 1 is the
        begin and 2 the end of a sentence.

    Raises
    ------
    ValueError
        If the unit is unknown, or the transcripts do not allow this number of tokens.
    """
    if unit not in TOKEN_UNITS:
        raise ValueError(unknown("token_unit", unit, TOKEN_UNITS))
    if unit != "char" and (not isinstance(vocab_size, int) or vocab_size < 1):
        raise ValueError(f"vocab_size must be a number of tokens, got {vocab_size!r}")

    def train():
        model = _train_sentencepiece(read_transcripts(manifest), unit, vocab_size)
        size = SentencePieceProcessor(model_proto=model).vocab_size()
        keep_tokenizer(folder, f"{size}_{unit}.model", model)

    sb.utils.distributed.run_on_main(train)
    return find_tokenizer(folder)


def _train_sentencepiece(sentences, unit, vocab_size):
    # SpeechBrain's wrapper stores the path of its text in the model, and fails if the
    # path contains a space. These are its settings.
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=unit,
            **({} if unit == "char" else {"vocab_size": vocab_size}),
            max_sentencepiece_length=10,
            character_coverage=1.0,
            unk_id=0,
            bos_id=BOS_INDEX,
            eos_id=EOS_INDEX,
            pad_id=-1,
            minloglevel=1,  # warnings: all settings and steps are 70 lines
        )
    except RuntimeError as error:
        at_most = re.search(r"Please set it to a value <= (\d+)", str(error))
        at_least = re.search(r"smaller than required_chars. \d+ vs (\d+)", str(error))
        # All characters, the three special tokens, and the mark of a word's start.
        characters = len(set("".join(sentences)) - {" "}) + 4
        if at_most:
            limit = f"have {at_most[1]} {unit} tokens at most"
        elif at_least or vocab_size < characters:
            limit = f"need {at_least[1] if at_least else characters} {unit} tokens"
            limit += " at least, one for each character"
        else:
            raise ValueError(
                f"no {unit} tokenizer can be trained on the transcripts: {error}"
            ) from error
        raise ValueError(
            f"the training transcripts {limit}; got vocab_size: {vocab_size}"
        ) from error
    return model.getvalue()


def keep_tokenizer(folder, name, content):
    """Write a tokenizer as the only one of a folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder; made if absent.
    name : str
        The file's name, ``*.model``.
    content : bytes
        The SentencePiece model.
    """
    file = pathlib.Path(folder) / name
    write_atomically(file, content)
    for other in file.parent.glob("*.model"):
        if other != file:
            other.unlink()


def find_tokenizer(folder, vocab_size=None):
    """Return the tokenizer that :func:`keep_tokenizer` wrote into a folder.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder.
    vocab_size : int, optional
        Its number of tokens; earlier versions may have left several tokenizers.

    Returns
    -------
    pathlib.Path or None
        None if there is none.
    """
    files = sorted(pathlib.Path(folder).glob("*.model"))
    if vocab_size is not None:
        files = [f for f in files if load_tokenizer(f).vocab_size() == vocab_size]
    return files[0] if len(files) == 1 else None


def load_tokenizer(file):
    """Load a SentencePiece model.

    Arguments
    ---------
    file : str or pathlib.Path
        The model.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If its special tokens differ from those of :func:`train_tokenizer`.
    """
    if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f"no such tokenizer_file: {file}")
    tokenizer = SentencePieceProcessor(model_file=str(file))
    got = (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id())
    if got != (0, BOS_INDEX, EOS_INDEX):
        raise ValueError(
            f"{file}: the tokens unknown, begin and end must be 0, {BOS_INDEX} and "
            f"{EOS_INDEX}, got {', '.join(map(str, got))}"
        )
    return tokenizer


def text_item(tokenizer):
    """Return the dynamic item that maps a transcript to tokens.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.

    Returns
    -------
    speechbrain DynamicItem
        Takes ``wrd`` and provides ``words, tokens, tokens_bos, tokens_eos``, with the
        words as the tokenizer writes them.
    """

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("words", "tokens", "tokens_bos", "tokens_eos")
    def text(wrd):
        words = as_written(wrd, tokenizer)
        ids = tokenizer.encode_as_ids(words)
        yield words
        yield torch.tensor(ids, dtype=torch.long)  # empty for an empty transcript
        yield torch.tensor([tokenizer.bos_id(), *ids])
        yield torch.tensor([*ids, tokenizer.eos_id()])

    return text


def make_dataset(manifest, tokenizer, sample_rate_hz, sort=None, max_duration_s=None):
    """Make a SpeechBrain dataset of samples and tokens.

    Arguments
    ---------
    manifest : str or pathlib.Path
        CSV with the columns ``ID, duration, wav, spk_id, wrd``.
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.
    sample_rate_hz : int
        Rate of the samples.
    sort : str, optional
        ``"ascending"`` or ``"descending"`` by duration; None keeps the order.
    max_duration_s : float, optional
        Skip longer utterances.

    Returns
    -------
    DynamicItemDataset
        With ``id, sig, words, tokens, tokens_bos, tokens_eos``.
    """

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio(wav):
        return read_audio(wav, sample_rate_hz)

    dataset = DynamicItemDataset.from_csv(
        str(manifest),
        dynamic_items=[audio, text_item(tokenizer)],
        output_keys=["id", "sig", "words", "tokens", "tokens_bos", "tokens_eos"],
    )
    limit = {} if max_duration_s is None else {"duration": max_duration_s}
    if sort is not None or limit:
        dataset = dataset.filtered_sorted(
            sort_key=None if sort is None else "duration",
            reverse=sort == "descending",
            key_max_value=limit,
        )
    if len(dataset) == 0:
        raise ValueError(f"{manifest} holds no utterance of at most {max_duration_s} s")
    return dataset


def draw_fraction(dataset, fraction, seed):
    """Draw a fraction of the utterances; with one seed, smaller fractions are nested.

    Arguments
    ---------
    dataset : DynamicItemDataset
        All utterances.
    fraction : float
        In (0, 1].
    seed : int
        Random seed.

    Returns
    -------
    DynamicItemDataset
        At least one utterance, in the original order.

    Raises
    ------
    ValueError
        If the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"train_fraction must be in (0, 1], got {fraction}")
    ids = sorted(dataset.data_ids)
    random.Random(seed).shuffle(ids)
    drawn = set(ids[: max(1, round(fraction * len(ids)))])
    kept = [utterance for utterance in dataset.data_ids if utterance in drawn]
    return FilteredSortedDynamicItemDataset(dataset, kept)


def pad_batch(examples):
    """Collate a batch, even if all transcripts are empty.

    Arguments
    ---------
    examples : list of dict
        Examples of :func:`make_dataset`.

    Returns
    -------
    PaddedBatch
    """
    return PaddedBatch(examples, padding_func=_pad_right)


def _pad_right(tensors, **options):
    """Pad as SpeechBrain, which divides by zero if all lengths are 0."""
    if any(len(tensor) for tensor in tensors):
        return batch_pad_right(tensors, **options)
    return tensors[0].new_zeros(len(tensors), 1), torch.zeros(len(tensors))


class JoiningBatch:
    """Collation that joins some utterances of a batch in pairs.

    It gives more and longer sentences from the same speech. On small corpora this keeps
    a model from memorising the training sentences.

    Arguments
    ---------
    fraction : float
        Fraction of the utterances that is joined, in [0, 1].
    seed : int
        Random seed. The choice depends on it, the epoch and the batch only, so that a
        resumed run or another number of loader processes does not change it.

    Attributes
    ----------
    enabled : bool
        Whether to join; False for the first epochs.
    epoch : int
        The current epoch.

    Raises
    ------
    ValueError
        If the fraction is out of range.
    """

    def __init__(self, fraction, seed=0):
        if not 0 <= fraction <= 1:
            raise ValueError(f"join_fraction must be in [0, 1], got {fraction}")
        self.fraction = fraction
        self.seed = seed
        self.enabled = True
        self.epoch = 0

    def __call__(self, examples):
        """Collate a list of examples into a PaddedBatch."""
        names = " ".join(example["id"] for example in examples)
        key = f"{self.seed} {self.epoch} {names}".encode()
        source = torch.Generator().manual_seed(zlib.crc32(key))
        order = torch.randperm(len(examples), generator=source).tolist()
        pairs = int(self.fraction * len(examples) / 2) if self.enabled else 0
        joined = [
            self._join(examples[order[2 * i]], examples[order[2 * i + 1]])
            for i in range(pairs)
        ]
        return pad_batch(joined + [examples[i] for i in order[2 * pairs :]])

    @staticmethod
    def _join(first, second):
        return {
            "id": f"{first['id']}+{second['id']}",
            "sig": torch.cat([first["sig"], second["sig"]]),
            "words": f"{first['words']} {second['words']}",
            "tokens": torch.cat([first["tokens"], second["tokens"]]),
            # One begin and one end for both.
            "tokens_bos": torch.cat([first["tokens_bos"], second["tokens"]]),
            "tokens_eos": torch.cat([first["tokens"], second["tokens_eos"]]),
        }


def train_loader_options(
    dataset, *, max_batch_s, max_batch_utterances, seed, workers, join_fraction
):
    """Return options of a loader with a bounded number of seconds per batch.

    Arguments
    ---------
    dataset : DynamicItemDataset
        The training set.
    max_batch_s : float
        Seconds of audio in a batch, padding included.
    max_batch_utterances : int
        Utterances in a batch at most.
    seed : int
        Seed of the order.
    workers : int
        Loader processes.
    join_fraction : float
        Fraction of the utterances that is joined in pairs.

    Returns
    -------
    dict
        For ``Brain.fit(train_loader_kwargs=...)``.
    """
    return {
        "batch_sampler": make_sampler(
            dataset, "duration", max_batch_s, max_batch_utterances, seed
        ),
        "generator": torch.Generator(),
        "num_workers": workers,
        "collate_fn": JoiningBatch(join_fraction, seed),
    }


def make_sampler(dataset, length_key, max_length, max_examples, seed):
    """Make a sampler of shuffled batches of similar lengths.

    Arguments
    ---------
    dataset : DynamicItemDataset
        The training set.
    length_key : str
        Static item with the length of an example.
    max_length : float
        Sum of the lengths in a batch, padding included.
    max_examples : int
        Examples in a batch at most.
    seed : int
        Seed of the order.

    Returns
    -------
    DynamicBatchSampler
    """
    return DynamicBatchSampler(
        dataset,
        max_batch_length=max_length,
        num_buckets=16,
        length_func=lambda example: example[length_key],
        shuffle=True,
        batch_ordering="random",
        max_batch_ex=max_examples,
        seed=seed,
    )


def manifest_durations(manifest):
    """Return the number of utterances and hours of a manifest.

    Arguments
    ---------
    manifest : str or pathlib.Path
        The CSV.

    Returns
    -------
    utterances : int
    hours : float
    """
    rows = load_data_csv(str(pathlib.Path(manifest))).values()
    return len(rows), sum(float(row["duration"]) for row in rows) / 3600
