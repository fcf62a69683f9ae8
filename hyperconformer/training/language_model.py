"""Training a language model for shallow fusion with a recogniser."""

import logging
import pathlib

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from torch.nn.functional import cross_entropy

from hyperconformer.core.masks import lengths_to_padding_mask, relative_to_frames
from hyperconformer.core.text import normalize
from hyperconformer.training.brain import TrainingBrain
from hyperconformer.training.data import make_sampler, read_transcripts, text_item
from hyperconformer.training.experiment import open_experiment
from hyperconformer.training.results import write_results
from hyperconformer.training.settings import LanguageModelSettings

logger = logging.getLogger(__name__)


class LMBrain(TrainingBrain):
    """Training of a language model, with its perplexity.

    Its one module, ``language_model``, maps (B, T) tokens, which start with the
    sentence begin, to (B, T, V) logits of the next tokens, of which the last is the
    sentence end, as SpeechBrain's ``TransformerLMScorer`` requires.
    """

    def compute_forward(self, batch, stage):
        """Compute logits from tokens.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``tokens_bos``.
        stage : speechbrain.Stage
            Not used.

        Returns
        -------
        logits : torch.Tensor
            (B, T, V).
        real : torch.Tensor
            (B, T) bool, True = a real token.
        """
        tokens, relative_lengths = batch.to(self.device).tokens_bos
        lengths = relative_to_frames(relative_lengths, tokens.shape[1])
        real = ~lengths_to_padding_mask(lengths, tokens.shape[1])
        return self.modules.language_model(tokens, input_mask=real), real

    def compute_objectives(self, predictions, batch, stage):
        """Compute the mean negative log-likelihood per token, sentence ends included.

        Arguments
        ---------
        predictions : tuple of torch.Tensor
            From :meth:`compute_forward`.
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``tokens_eos`` and ``words``.
        stage : speechbrain.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            Scalar loss.
        """
        logits, real = predictions
        targets = batch.tokens_eos[0][real]
        loss = cross_entropy(logits[real].float(), targets)
        if stage != sb.Stage.TRAIN:
            self.nats += loss.item() * len(targets)
            self.tokens += len(targets)
            # The end of a sentence counts as a word, as for n-gram models.
            self.words += sum(len(words.split()) + 1 for words in batch.words)
        return loss

    def on_stage_start(self, stage, epoch=None):
        """Reshuffle for a new epoch, or reset the counts."""
        if stage == sb.Stage.TRAIN:
            self.start_epoch(epoch)
        else:
            self.nats, self.tokens, self.words = 0.0, 0, 0

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, keep the best and the last checkpoint, and redraw the curve."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": self.mean_over_processes(stage_loss)}
            return
        stats = {
            "loss": self.nats / self.tokens,
            "token perplexity": perplexity(self.nats, self.tokens),
            "word perplexity": perplexity(self.nats, self.words),
        }
        if stage == sb.Stage.VALID:
            self.end_epoch(epoch, self.train_stats, stats, min_keys=["loss"])
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"test set": self.test_name}, test_stats=stats
            )
            self.test_stats = stats

    def evaluate_split(self, name, dataset, loader_options):
        """Compute the perplexities of a set with the best checkpoint.

        Arguments
        ---------
        name : str
            The set's name, for the log.
        dataset : speechbrain DynamicItemDataset
            The set.
        loader_options : dict
            Options of its loader.

        Returns
        -------
        dict
            ``loss`` in nats per token, ``token perplexity`` and ``word perplexity``.
        """
        self.test_name = name
        self.evaluate(dataset, test_loader_kwargs=loader_options)
        return self.test_stats

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the checkpoint with the lowest validation loss."""
        best = self.find_checkpoints(min_key="loss", max_num_checkpoints=1)[0]
        self.checkpointer.load_checkpoint(best)


def perplexity(nats, count):
    """Return the perplexity, the exponential of the mean negative log-likelihood.

    Arguments
    ---------
    nats : float
        Negative log-likelihood of all predictions.
    count : int
        Number of predictions.

    Returns
    -------
    float

    Example
    -------
    >>> import math
    >>> round(perplexity(3 * math.log(10), 3), 6)
    10.0
    """
    return torch.tensor(nats / count, dtype=torch.float64).exp().item()


def train(config_file, run_options=None, overrides=None):
    """Prepare the corpus, train, evaluate and export.

    Arguments and errors are those of :func:`hyperconformer.training.asr.train`; a text
    of ``train_texts`` must exist too.

    Returns
    -------
    dict
        Split to ``{"loss", "token perplexity", "word perplexity"}``.
    """
    run_options = run_options or {}
    test_only = bool(run_options.get("test_only"))
    experiment = open_experiment(
        LanguageModelSettings, config_file, overrides, test_only
    )
    results = _run(experiment, run_options)
    if sb.utils.distributed.if_main_process():
        report(results, experiment.save_model(["language_model"]), experiment.output)
    return results


def _run(experiment, run_options):
    settings, manifests = experiment.settings, experiment.manifests
    tokenizer, output = experiment.tokenizer, experiment.output
    transcripts = {split: read_transcripts(file) for split, file in manifests.items()}
    train_set = make_text_dataset(
        transcripts[settings.train_split] + read_texts(settings.train_texts, tokenizer),
        tokenizer,
    )
    loader = {
        "batch_sampler": make_sampler(
            train_set,
            "num_tokens",
            settings.max_batch_tokens,
            settings.max_batch_sentences,
            settings.seed,
        ),
        "generator": torch.Generator(),
        "num_workers": settings.loader_workers,
        "collate_fn": PaddedBatch,
    }
    modules = {"language_model": settings.language_model}
    brain = experiment.make_brain(LMBrain, loader, modules, run_options)
    eval_loader = {"batch_size": settings.max_batch_sentences}
    eval_loader["collate_fn"] = PaddedBatch
    if not brain.test_only:
        brain.fit(
            settings.epoch_counter,
            train_set,
            make_text_dataset(transcripts[settings.valid_split], tokenizer),
            train_loader_kwargs=loader,
            valid_loader_kwargs=dict(eval_loader),
        )
    results = {
        split: brain.evaluate_split(
            split, make_text_dataset(transcripts[split], tokenizer), dict(eval_loader)
        )
        for split in settings.evaluated_splits
    }
    if sb.utils.distributed.if_main_process():
        names = {"valid": settings.valid_split, "test": settings.test_splits[0]}
        model = settings.language_model
        write_results(output / "results.json", results, brain, model, **names)
    return results


def read_texts(files, tokenizer):
    """Read sentences of plain text files, one per line, written like transcripts.

    Lines with a character that the tokenizer does not know are skipped and counted in
    the log.

    Arguments
    ---------
    files : list of str or pathlib.Path
        UTF-8 text.
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.

    Returns
    -------
    list of str

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    ValueError
        If a file has no usable line.
    """
    sentences = []
    for file in map(pathlib.Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"no such file in train_texts: {file}")
        with open(file, encoding="utf-8") as stream:
            lines = list(filter(None, map(normalize, stream)))
        known = [
            line
            for line in lines
            if tokenizer.unk_id() not in tokenizer.encode_as_ids(line)
        ]
        logger.info(
            f"{file}: {len(known)} sentences; {len(lines) - len(known)} left out, "
            "with characters that the tokenizer does not know"
        )
        if not known:
            raise ValueError(
                f"{file}: no line has only characters that the tokenizer knows; "
                "write it like the transcripts, perhaps in upper case"
            )
        sentences += known
    return sentences


def make_text_dataset(sentences, tokenizer):
    """Make a SpeechBrain dataset of sentences.

    Arguments
    ---------
    sentences : list of str
        Words separated by spaces.
    tokenizer : sentencepiece.SentencePieceProcessor
        Text to tokens.

    Returns
    -------
    DynamicItemDataset
        With ``id, words, tokens_bos, tokens_eos``, and the static ``num_tokens``, which
        includes the sentence end.
    """
    ids = tokenizer.encode(sentences)
    data = {
        str(number): {"wrd": sentence, "num_tokens": len(tokens) + 1}
        for number, (sentence, tokens) in enumerate(zip(sentences, ids))
    }
    return DynamicItemDataset(
        data,
        dynamic_items=[text_item(tokenizer)],
        output_keys=["id", "words", "tokens_bos", "tokens_eos"],
    )


def report(results, model, output):
    """Print the perplexities and the paths of the results.

    Arguments
    ---------
    results : dict
        Split to ``{"loss", "token perplexity", "word perplexity"}``.
    model : pathlib.Path
        The model folder.
    output : pathlib.Path
        The run's folder.
    """
    print(f"\n{'split':<20}{'token perplexity':>18}{'word perplexity':>18}")
    for split, stats in results.items():
        print(
            f"{split:<20}{stats['token perplexity']:>18.2f}"
            f"{stats['word perplexity']:>18.2f}"
        )
    print(f"\nlog: {output / 'train_log.txt'}   curve: {output / 'curve.png'}")
    print(f"model: {model}")
