"""SpeechBrain's Brain for CTC and attention speech recognition."""

import math
import pathlib

import speechbrain as sb
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.utils.checkpoints import average_checkpoints

from hyperconformer.plots import plot_training


class ASRBrain(sb.Brain):
    """Trains and evaluates a recogniser with a CTC head and, optionally, a decoder.

    Its one module, ``recognizer``, is a
    :class:`hyperconformer.integration.recognizer.Recognizer`; the other parts come
    from the YAML file (``hyperconformer.training.run`` names them all).

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    batch_sampler : speechbrain.dataio.sampler.DynamicBatchSampler, optional
        Of the training set, to reshuffle it for each epoch; not needed to evaluate.
    **kwargs
        As ``speechbrain.Brain``.
    """

    def __init__(self, tokenizer, batch_sampler=None, **kwargs):
        super().__init__(**kwargs)
        self.tokenizer = tokenizer
        self.batch_sampler = batch_sampler
        self.epoch = 0

    def compute_forward(self, batch, stage):
        """Samples to log-probabilities.

        Arguments
        ---------
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``sig`` and ``tokens_bos``.
        stage : speechbrain.Stage
            Where we are.

        Returns
        -------
        hyperconformer.integration.recognizer.Recognition
        """
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        train = stage == sb.Stage.TRAIN
        augment = train and self.epoch >= self.hparams.augment_from_epoch
        if augment and self.hparams.wav_augment is not None:
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)
        features, lengths = self.hparams.extractor(wavs, wav_lens)
        if augment and self.hparams.feature_augment is not None:
            relative = lengths / features.shape[1]
            features, _ = self.hparams.feature_augment(features, relative)
        targets = None
        if train and self.hparams.num_decoder_layers > 0:
            targets = batch.tokens_bos[0]
        return self.modules.recognizer(features, lengths, targets)

    def compute_objectives(self, predictions, batch, stage):
        """CTC loss, joined with the decoder's where there is one.

        Arguments
        ---------
        predictions : hyperconformer.integration.recognizer.Recognition
            From :meth:`compute_forward`.
        batch : speechbrain.dataio.batch.PaddedBatch
            With ``tokens`` and ``tokens_eos``.
        stage : speechbrain.Stage
            Where we are.

        Returns
        -------
        torch.Tensor
            Scalar loss.
        """
        tokens, token_lens = batch.tokens
        loss = self.hparams.ctc_cost(
            predictions.ctc, tokens, predictions.relative_lengths, token_lens
        )
        if predictions.seq is not None:
            tokens_eos, eos_lens = batch.tokens_eos
            seq_loss = self.hparams.seq_cost(predictions.seq, tokens_eos, eos_lens)
            weight = self.hparams.ctc_weight
            loss = weight * loss + (1 - weight) * seq_loss
        if stage != sb.Stage.TRAIN:
            hypotheses = self._decode(predictions, stage)
            references = [words.split() for words in batch.words]
            self.wer.append(batch.id, hypotheses, references)
            self.cer.append(batch.id, hypotheses, references)
        return loss

    def _decode(self, predictions, stage):
        search = self.hparams.test_search
        lengths = predictions.relative_lengths
        if stage == sb.Stage.TEST and search is not None:
            ids = search(predictions.encoded, lengths)[0]
        else:
            ids = ctc_greedy_decode(predictions.ctc, lengths, blank_id=0)
        return [self.tokenizer.decode_ids(sequence).split() for sequence in ids]

    def on_fit_start(self):
        """Build optimizers, recover, and tell the schedule how long this will be."""
        super().on_fit_start()
        schedule = self.hparams.lr_schedule
        if hasattr(schedule, "total_updates"):
            updates = math.ceil(len(self.batch_sampler) / self.grad_accumulation_factor)
            schedule.total_updates = self.hparams.number_of_epochs * updates

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Step the learning rate after each update."""
        if should_step:
            self.hparams.lr_schedule(self.optimizer)

    def on_stage_start(self, stage, epoch=None):
        """Reshuffle for a new epoch, or prepare the error counts."""
        if stage == sb.Stage.TRAIN:
            self.epoch = epoch
            self.batch_sampler.set_epoch(epoch)
        else:
            self.wer = self.hparams.error_rate_computer()
            self.cer = self.hparams.error_rate_computer(split_tokens=True)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log, keep a checkpoint and redraw the curve."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer.summarize("error_rate")
        stats["CER"] = self.cer.summarize("error_rate")
        if stage == sb.Stage.VALID:
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "lr": self.optimizer.param_groups[0]["lr"],
                    "updates": self.optimizer_step,
                },
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            # Kept by recency: what is averaged at the end are the last ones.
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"], "epoch": epoch},
                num_to_keep=self.hparams.avg_checkpoints,
                max_keys=["epoch"],
            )
            if sb.utils.distributed.if_main_process():
                log = pathlib.Path(self.hparams.train_logger.save_file)
                plot_training(log, log.with_name("curve.png"))
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"test set": self.test_name}, test_stats=stats
            )
            self.test_stats = stats

    def evaluate_split(self, name, dataset, loader_options, wer_file):
        """Word and character error rates of a set, with an alignment file.

        Arguments
        ---------
        name : str
            The set's name, for the log.
        dataset : speechbrain DynamicItemDataset
            The set.
        loader_options : dict
            For its loader.
        wer_file : str or pathlib.Path
            Where the alignments go.

        Returns
        -------
        dict
            ``loss``, ``WER`` and ``CER``, the rates in percent.
        """
        self.test_name = name
        self.evaluate(dataset, test_loader_kwargs=loader_options)
        with open(wer_file, "w", encoding="utf-8") as file:
            self.wer.write_stats(file)
        return self.test_stats

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Load the average of the last checkpoints."""
        checkpoints = self.checkpointer.find_checkpoints(
            max_key="epoch", max_num_checkpoints=self.hparams.avg_checkpoints
        )
        if not checkpoints:
            raise ValueError(
                f"no checkpoint to evaluate in {self.checkpointer.checkpoints_dir}: "
                "train first"
            )
        self.checkpointer.load_checkpoint(checkpoints[0])
        state = average_checkpoints(checkpoints, recoverable_name="recognizer")
        self.hparams.recognizer.load_state_dict(state, strict=True)
