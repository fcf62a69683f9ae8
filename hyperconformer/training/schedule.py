"""Learning-rate schedule over the whole training."""

import math

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)


@register_checkpoint_hooks
class WarmupCosine:
    """Linear warm-up to the peak, then half a cosine down to zero.

    SpeechBrain's schedules need the number of updates in the YAML file, which is
    unknown with batches of bounded seconds. This one follows :attr:`progress`, the
    fraction of the training that is done, which the Brain sets before each call. It
    stays correct if a run resumes with other batches.

    Arguments
    ---------
    peak_lr : float
        Highest learning rate.
    warmup_fraction : float
        Fraction of the training that warms up, in (0, 1).
    final_fraction : float
        Final learning rate, divided by the peak.

    Attributes
    ----------
    progress : float
        Fraction of the training that is done.

    Raises
    ------
    ValueError
        If a fraction is out of range.

    Example
    -------
    >>> schedule = WarmupCosine(peak_lr=1.0, warmup_fraction=0.1)
    >>> [round(schedule.rate(progress), 2) for progress in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        peak_lr: float,
        warmup_fraction: float = 0.1,
        final_fraction: float = 0.0,
    ):
        if not 0 < warmup_fraction < 1:
            raise ValueError(
                f"warmup_fraction must be in (0, 1), got {warmup_fraction}"
            )
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"final_fraction must be in [0, 1], got {final_fraction}")
        self.peak_lr = peak_lr
        self.warmup_fraction = warmup_fraction
        self.final_fraction = final_fraction
        self.progress = 0.0

    def rate(self, progress: float) -> float:
        """Return the learning rate at a point of the training.

        Arguments
        ---------
        progress : float
            Fraction of the training that is done, in [0, 1].

        Returns
        -------
        float
        """
        done = min(progress, 1.0)
        if done < self.warmup_fraction:
            return self.peak_lr * done / self.warmup_fraction
        left = (done - self.warmup_fraction) / (1 - self.warmup_fraction)
        cosine = 0.5 * (1 + math.cos(math.pi * left))
        return self.peak_lr * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def __call__(self, optimizer: torch.optim.Optimizer) -> float:
        """Set the optimizer's learning rate for :attr:`progress`.

        Arguments
        ---------
        optimizer : torch.optim.Optimizer

        Returns
        -------
        float
            The rate.
        """
        rate = self.rate(self.progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    @mark_as_saver
    def _save(self, path):
        torch.save({"progress": self.progress}, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        # Older checkpoints count updates of an unknown total; the Brain sets the
        # fraction again.
        state = torch.load(path, weights_only=True)
        self.progress = state.get("progress", self.progress)
