"""SpeechBrain's Brain for CTC and attention speech recognition."""

import itertools
import logging
import pathlib
import time
import zlib
from typing import Any

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    average_checkpoints,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.train_logger import TensorboardLogger

from hyperconformer.core.extras import import_extra
from hyperconformer.core.masks import lengths_to_padding_mask
from hyperconformer.core.text import normalize
from hyperconformer.evaluation.error_rates import summarize
from hyperconformer.evaluation.plots import plot_training
from hyperconformer.model.transducer import transducer_loss
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.training.results import write_errors
from hyperconformer.training.resume import RandomStates, count_processes

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_CURVES = 60
# Features to whose multiples batches of reduced precision are padded on a CPU.
PADDED_FEATURES = 64


def consistency_loss(log_probs, lengths, token_counts):
    """Return the disagreement of two augmented views of each utterance.

    "CR-CTC: Consistency Regularization on CTC for Improved Speech Recognition",
    arXiv:2410.05101, equation 4: the frame-wise divergence from each view to the other
    view's distribution, which is held fixed. It is divided by the number of tokens, as
    the CTC loss is.

    Arguments
    ---------
    log_probs : torch.Tensor
        (2 B, T, V) log-probabilities, the first views before the second ones.
    lengths : torch.Tensor
        (2 B,) int64 frames.
    token_counts : torch.Tensor
        (2 B,) tokens of each transcript.

    Returns
    -------
    torch.Tensor
        Scalar.

    Example
    -------
    >>> views = torch.tensor([[[0.5, 0.5]], [[0.5, 0.5]]]).log()
    >>> consistency_loss(views, torch.ones(2).long(), torch.ones(2)).item()
    0.0
    """
    other = log_probs.detach().roll(len(log_probs) // 2, dims=0)
    divergence = (other.exp() * (other - log_probs)).sum(-1)
    padding = lengths_to_padding_mask(lengths, log_probs.shape[1])
    divergence = divergence.masked_fill(padding, 0.0).sum(-1)
    return (divergence / token_counts.clamp(min=1)).mean()


@register_checkpoint_hooks
class TrainingBrain(sb.Brain):
    """Training with a schedule over its whole length, a log and a curve.

    Training ends after the epochs of the YAML file, after ``max_updates``, or after
    ``max_train_s`` seconds spent in updates, whichever comes first.

    Arguments
    ---------
    train_loader : dict
        Options of the training set's loader. Its ``batch_sampler`` is reshuffled for
        each epoch.
    **kwargs
        As ``speechbrain.Brain``.
    """

    def __init__(self, train_loader, **kwargs):
        super().__init__(**kwargs)
        # The sampler shuffles the batches. With several processes, SpeechBrain must
        # only distribute them, so that two processes do what one does in two steps.
        self.hparams.sorting = "by the batch sampler"
        self.batch_sampler = train_loader["batch_sampler"]
        self.batches = None
        self.train_s = 0.0
        self.spent_s = 0.0
        self.curve_drawn = time.monotonic()
        self.tensorboard = None
        if self.hparams.tensorboard:
            import_extra("tensorboard", "tensorboard", "TensorBoard's logs")
            folder = pathlib.Path(self.hparams.output_folder, "tensorboard")
            self.tensorboard = TensorboardLogger(str(folder))
        self.loader_random = train_loader["generator"]
        self.checkpointer.add_recoverable(
            "random_states",
            RandomStates(),
            optional_load=True,  # older checkpoints have none
        )

    def on_fit_start(self):
        """Build optimizers, recover, and compute the progress of the training.

        Raises
        ------
        ValueError
            If an epoch has too few batches for one update.
        """
        # With several processes, train_sampler gives each process its own batches.
        batches = len(self.train_sampler or self.batch_sampler)
        self.epoch_updates = batches // self.grad_accumulation_factor
        if self.epoch_updates < 1:
            raise ValueError(
                f"grad_accumulation_factor is {self.grad_accumulation_factor}, but an "
                f"epoch has only {batches} batches for each process: there would "
                "be no update. Lower it, or make the batches smaller"
            )
        if self.hparams.max_updates is not None:
            self.optimizer_step_limit = self.hparams.max_updates
        super().on_fit_start()
        if self.optimizer_step > 0:
            self._resume()
        if self._optimizer_step_limit_exceeded and self.step == 0:
            counter = self.hparams.epoch_counter  # the training is complete
            counter.current = counter.limit

    def init_optimizers(self):
        """Build the optimizer and record its settings."""
        super().init_optimizers()
        self.optimizer_settings = [
            {key: x for key, x in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]

    def _resume(self):
        """Restore this run's settings, which the checkpoint has overwritten."""
        for group, settings in zip(
            self.optimizer.param_groups, self.optimizer_settings
        ):
            group.update(settings)
        if self.step > 0:
            self._resume_inside_epoch()
        self._check_seconds()
        if hasattr(self.hparams.lr_schedule, "progress"):
            self._set_rate(epochs_done=self.hparams.epoch_counter.current)

    def _resume_inside_epoch(self):
        """Restart the epoch if its batches have changed."""
        before, epoch = self.batches, self.hparams.epoch_counter.current + 1
        self.batch_sampler.set_epoch(epoch)
        now = self._describe_batches()
        if before is None:  # a checkpoint of an earlier version
            before = now if self.step <= now["for each process"] else {}
        if before == now:
            return
        logger.warning(
            f"the checkpoint was written inside epoch {epoch}, after {self.step} of "
            f"{before.get('for each process', 'its')} batches. The epoch now has "
            f"other batches, {now['for each process']} for each of "
            f"{now['processes']} processes (the batch size, the number of processes, "
            "the training utterances or the seed differ). So it begins again, with "
            "the weights of the checkpoint"
        )
        self.step, self.avg_train_loss = 0, 0.0
        for name, loader in self.checkpointer.recoverables.items():
            if name.startswith("dataloader"):
                loader._speechbrain_recovery_skip_to = None

    def _describe_batches(self):
        """Return a description that identifies an epoch's batches."""
        # The sampler reshuffles at its end: stop before it.
        batches = list(itertools.islice(self.batch_sampler, len(self.batch_sampler)))
        return {
            "for each process": len(self.train_sampler or self.batch_sampler),
            "processes": count_processes(),
            "crc32": zlib.crc32(repr(batches).encode()),
        }

    def start_epoch(self, epoch):
        """Shuffle for a new epoch.

        Arguments
        ---------
        epoch : int
            The new epoch.
        """
        self.batch_sampler.set_epoch(epoch)
        self.batches = self._describe_batches()
        # Seeds the loader's processes only: a resumed run has already restored the
        # random states of this process.
        self.loader_random.manual_seed(self.hparams.seed + epoch)

    @staticmethod
    def mean_over_processes(value):
        """Return the mean of a value over all processes.

        Arguments
        ---------
        value : float
            This process's value.

        Returns
        -------
        float
        """
        if not sb.utils.distributed.is_distributed_initialized():
            return value
        values = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(values, value)
        return sum(values) / len(values)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Checkpoints hold no gradients: write none between accumulated batches.
        return self.step % self.grad_accumulation_factor == 0 and (
            super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        )

    def fit_batch(self, batch):
        """Train on a batch and time it; set the learning rate after an update."""
        started = time.monotonic()
        loss = super().fit_batch(batch)
        self.train_s += time.monotonic() - started
        self._check_seconds()
        if self.step % self.grad_accumulation_factor == 0:
            self._set_rate(epochs_done=self.hparams.epoch_counter.current - 1)
        return loss

    def _check_seconds(self):
        """End the training when its seconds are used up."""
        if self.hparams.max_train_s is not None:
            # All processes must end together.
            self.spent_s = self.mean_over_processes(self.train_s)
            if self.spent_s >= self.hparams.max_train_s:
                self.optimizer_step_limit = self.optimizer_step

    def _set_rate(self, epochs_done):
        schedule = self.hparams.lr_schedule
        if hasattr(schedule, "progress"):  # SpeechBrain's schedules count updates
            schedule.progress = self._measure_progress(epochs_done)
        schedule(self.optimizer)

    def _measure_progress(self, epochs_done):
        """Return the fraction of the training that is done, in [0, 1].

        It refers to epochs, updates or seconds, whichever ends the training first. It
        does not count batches, so that a run may resume with other batches.
        """
        updates = self.step // self.grad_accumulation_factor
        updates += epochs_done * self.epoch_updates
        done = [updates / (self.hparams.number_of_epochs * self.epoch_updates)]
        if self.hparams.max_updates is not None:
            done.append(self.optimizer_step / self.hparams.max_updates)
        if self.hparams.max_train_s is not None:
            done.append(self.spent_s / self.hparams.max_train_s)
        return min(max(done), 1.0)

    @mark_as_saver
    def _save(self, path):
        super()._save(path)
        with open(path, "a", encoding="utf-8") as file:
            yaml.dump({"train_s": self.train_s, "batches": self.batches}, file)

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as file:
            state = yaml.safe_load(file)
        self.train_s = state["train_s"]
        self.batches = state.get("batches")

    def end_epoch(self, epoch, train_stats, valid_stats, **keep):
        """Log, keep a checkpoint, and redraw the curve once a minute and at the end.

        Arguments
        ---------
        epoch : int
            The validated epoch.
        train_stats, valid_stats : dict of str to float
            Statistics to log.
        **keep
            Which checkpoints to keep, see SpeechBrain's ``save_and_keep_only``.
        """
        stats: dict[str, Any] = {
            "stats_meta": {
                "epoch": epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "updates": self.optimizer_step,
            },
            "train_stats": train_stats,
            "valid_stats": valid_stats,
        }
        self.hparams.train_logger.log_stats(**stats)
        if self.tensorboard is not None:
            # Its step is the epoch, also in a run that continues.
            before = epoch - 1
            self.tensorboard.global_step = {
                "meta": before,
                "train": dict.fromkeys(train_stats, before),
                "valid": dict.fromkeys(valid_stats, before),
            }
            self.tensorboard.log_stats(**stats)
        self.checkpointer.save_and_keep_only(
            meta={**valid_stats, "epoch": epoch}, **keep
        )
        if sb.utils.distributed.if_main_process():
            last = epoch == self.hparams.number_of_epochs
            last = last or self._optimizer_step_limit_exceeded
            # Drawing takes longer than an epoch of a tiny corpus.
            if last or time.monotonic() - self.curve_drawn > SECONDS_BETWEEN_CURVES:
                self._draw_curve()

    def _draw_curve(self):
        log = pathlib.Path(self.hparams.train_logger.save_file)
        plot_training(log, log.with_name("curve.png"))
        self.curve_drawn = time.monotonic()

    def find_checkpoints(self, **wanted):
        """Return the checkpoints to evaluate.

        Arguments
        ---------
        **wanted
            As SpeechBrain's ``Checkpointer.find_checkpoints``.

        Returns
        -------
        list of speechbrain Checkpoint
            At least one.

        Raises
        ------
        ValueError
            If there is none.
        """
        checkpoints = self.checkpointer.find_checkpoints(**wanted)
        if not checkpoints:
            raise ValueError(
                f"no checkpoint to evaluate in {self.checkpointer.checkpoints_dir}: "
                "train first"
            )
        return checkpoints


class ASRBrain(TrainingBrain):
    """Training and evaluation of a recogniser with a CTC head and optional other heads.

    Its module ``recognizer`` is a
    :class:`hyperconformer.model.recognizer.Recognizer`. The module ``phone_ctc``,
    a :class:`hyperconformer.training.phones.PhoneCTC`, is optional. The other parts
    come from the YAML file (``hyperconformer.training.asr`` lists them).

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    train_loader : dict
        From ``hyperconformer.training.data.train_loader_options``. Its sampler is
        reshuffled for each epoch; its collation joins utterances once augmentation
        begins.
    **kwargs
        As ``speechbrain.Brain``.
    """

    def __init__(self, tokenizer, train_loader, **kwargs):
        super().__init__(train_loader, **kwargs)
        self.tokenizer = tokenizer
        self.collate = train_loader["collate_fn"]
        self.augmenting = False
        self.test_chunk = None

    def compute_forward(self, batch, stage):
        """Compute log-probabilities from samples.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``sig`` and ``tokens_bos``.
        stage : speechbrain.Stage
            Training, validation or test.

        Returns
        -------
        hyperconformer.model.recognizer.Recognition
        """
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        train = stage == sb.Stage.TRAIN
        augment = train and self.augmenting
        if augment and self.hparams.wav_augment is not None:
            # Resampling is a convolution, which autocast would round to 8 bits.
            with torch.autocast(wavs.device.type, enabled=False):
                wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        features, lengths = self.hparams.extractor(wavs, wav_lens)
        views = self._views if augment else 1
        if augment and self.hparams.feature_augment is not None:
            relative = lengths / features.shape[1]
            features = torch.cat(
                [
                    self.hparams.feature_augment(features.clone(), relative)[0]
                    for _ in range(views)
                ]
            )
            lengths = lengths.repeat(views)
        if train and self._compiles_each_shape:
            # The lengths are frames, so more padding does not change them.
            padding = -features.shape[1] % PADDED_FEATURES
            features = torch.nn.functional.pad(features, (0, 0, 0, padding))
        targets = None
        if train and self.hparams.recognizer.needs_targets:
            targets = batch.tokens_bos[0].repeat(views, 1)
        return self.modules.recognizer(
            features, lengths, targets, self._chunk_config(stage)
        )

    @property
    def _compiles_each_shape(self):
        """Whether oneDNN computes, which compiles products in bf16 for each shape.

        A first product takes several times as long as those after it, and nearly every
        batch of utterances has a length of its own.
        """
        return self.precision != "fp32" and torch.device(self.device).type == "cpu"

    def _chunk_config(self, stage):
        """Return the chunk rule of this batch, as SpeechBrain's DynChunkTrainConfig."""
        sampler = self.hparams.dynchunktrain_config_sampler
        if stage == sb.Stage.TEST:
            return self.test_chunk
        # A run without chunks draws no random number for them.
        return sampler(stage) if sampler.chunkwise_prob > 0 else None

    @property
    def _views(self):
        """The number of views of an utterance in an augmented batch."""
        augmented = self.hparams.feature_augment is not None
        return 2 if augmented and self.hparams.consistency_weight > 0 else 1

    def compute_objectives(self, predictions, batch, stage):
        """Compute the loss of CTC, decoder or transducer, consistency and phones.

        Arguments
        ---------
        predictions : hyperconformer.model.recognizer.Recognition
            From :meth:`compute_forward`.
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``tokens`` and ``tokens_eos``.
        stage : speechbrain.Stage
            Training, validation or test.

        Returns
        -------
        torch.Tensor
            Scalar loss.
        """
        tokens, token_lens = batch.tokens
        views = len(predictions.ctc) // len(tokens)
        tokens, token_lens = tokens.repeat(views, 1), token_lens.repeat(views)
        loss = self.hparams.ctc_cost(
            predictions.ctc, tokens, predictions.relative_lengths, token_lens
        )
        if views == 2:
            counts = (token_lens * tokens.shape[1]).round()
            loss = loss + self.hparams.consistency_weight * consistency_loss(
                predictions.ctc, predictions.lengths, counts
            )
        weight = self.hparams.ctc_weight
        if predictions.transducer is not None:
            counts = (token_lens * tokens.shape[1]).round().long()
            losses = transducer_loss(
                predictions.transducer, tokens, predictions.lengths, counts
            )
            loss = weight * loss + (1 - weight) * (losses / counts.clamp(min=1)).mean()
        if predictions.seq is not None:
            tokens_eos, eos_lens = batch.tokens_eos
            tokens_eos, eos_lens = tokens_eos.repeat(views, 1), eos_lens.repeat(views)
            seq_loss = self.hparams.seq_cost(predictions.seq, tokens_eos, eos_lens)
            loss = weight * loss + (1 - weight) * seq_loss
        phones = self.hparams.phone_ctc
        if phones is not None and stage == sb.Stage.TRAIN:
            phone_loss = self.modules.phone_ctc(
                predictions.hidden, predictions.relative_lengths, batch.words * views
            )
            loss = (1 - phones.weight) * loss + phones.weight * phone_loss
        if stage != sb.Stage.TRAIN:
            hypotheses = self._decode(predictions, stage)
            references = [normalize(words).split() for words in batch.words]
            self.wer.append(batch.id, hypotheses, references)
            self.cer.append(batch.id, hypotheses, references)
        return loss

    def _decode(self, predictions, stage):
        search = self.hparams.test_search if stage == sb.Stage.TEST else None
        search = search or GreedySearcher()
        texts = search.texts(predictions, self.tokenizer)
        return [normalize(text).split() for text in texts]

    def on_stage_start(self, stage, epoch=None):
        """Reshuffle for a new epoch, or prepare the error counts."""
        if stage == sb.Stage.TRAIN:
            self.augmenting = epoch >= self.hparams.augment_from_epoch
            self.collate.enabled = self.augmenting
            self.collate.epoch = epoch
            self.start_epoch(epoch)
        else:
            self.wer = self.hparams.error_rate_computer()
            self.cer = self.hparams.error_rate_computer(split_tokens=True)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, keep a checkpoint and redraw the curve."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": self.mean_over_processes(stage_loss)}
            return
        stats["WER"] = summarize(self.wer)["error_rate"]
        stats["CER"] = summarize(self.cer)["error_rate"]
        if stage == sb.Stage.VALID:
            # Keep the latest: the last checkpoints are averaged at the end.
            self.end_epoch(
                epoch,
                self.train_stats,
                stats,
                num_to_keep=self.hparams.avg_checkpoints,
                max_keys=["epoch"],
            )
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"test set": self.test_name}, test_stats=stats
            )
            self.test_stats = stats

    def evaluate_split(
        self, name, dataset, loader_options, wer_file, errors_file, chunk=None
    ):
        """Compute word and character error rates of a set; write its alignments.

        Arguments
        ---------
        name : str
            The set's name, for the log.
        dataset : speechbrain DynamicItemDataset
            The set.
        loader_options : dict
            Options of its loader.
        wer_file : str or pathlib.Path
            File of the alignments.
        errors_file : str or pathlib.Path
            File of the error counts of each utterance.
        chunk : speechbrain DynChunkTrainConfig, optional
            The chunk rule; None = the whole utterance.

        Returns
        -------
        dict
            ``loss``, ``WER`` and ``CER``, the rates in percent, or NaN if the
            references contain no words.
        """
        self.test_name, self.test_chunk = name, chunk
        self.evaluate(dataset, test_loader_kwargs=loader_options)
        if sb.utils.distributed.if_main_process():
            with open(wer_file, "w", encoding="utf-8") as file:
                self.wer.write_stats(file)
            write_errors(errors_file, self.wer, self.cer)
        return self.test_stats

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the average of the last checkpoints."""
        checkpoints = self.find_checkpoints(
            max_key="epoch", max_num_checkpoints=self.hparams.avg_checkpoints
        )
        self.checkpointer.load_checkpoint(checkpoints[0])
        state = average_checkpoints(checkpoints, recoverable_name="recognizer")
        self.hparams.recognizer.load_state_dict(state, strict=True)
