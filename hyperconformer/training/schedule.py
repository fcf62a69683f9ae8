"""Learning-rate schedule that knows how long the training is."""

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

    SpeechBrain's schedules want the number of updates written into the YAML file,
    which nobody knows with batches of bounded seconds; here both parts are
    fractions of the training, whose length the Brain tells before the first update.

    Arguments
    ---------
    peak_lr : float
        Highest learning rate.
    warmup_fraction : float
        Part of the training that warms up, in (0, 1).
    final_fraction : float
        Rate at the end over the peak.

    Raises
    ------
    ValueError
        If a fraction is out of range.

    Example
    -------
    >>> schedule = WarmupCosine(peak_lr=1.0, warmup_fraction=0.1)
    >>> schedule.total_updates = 100
    >>> [round(schedule.rate(update), 2) for update in (5, 10, 55, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, peak_lr, warmup_fraction=0.1, final_fraction=0.0):
        if not 0 < warmup_fraction < 1:
            raise ValueError(
                f"warmup_fraction must be in (0, 1), got {warmup_fraction}"
            )
        if not 0 <= final_fraction <= 1:
            raise ValueError(f"final_fraction must be in [0, 1], got {final_fraction}")
        self.peak_lr = peak_lr
        self.warmup_fraction = warmup_fraction
        self.final_fraction = final_fraction
        self.total_updates = None
        self.n_steps = 0

    def rate(self, update):
        """The learning rate at an update.

        Arguments
        ---------
        update : int
            From 1 to ``total_updates``.

        Returns
        -------
        float
        """
        done = min(update / self.total_updates, 1.0)
        if done < self.warmup_fraction:
            return self.peak_lr * done / self.warmup_fraction
        left = (done - self.warmup_fraction) / (1 - self.warmup_fraction)
        cosine = 0.5 * (1 + math.cos(math.pi * left))
        return self.peak_lr * (self.final_fraction + (1 - self.final_fraction) * cosine)

    def __call__(self, optimizer):
        """Set the optimizer's rate for the next update.

        Arguments
        ---------
        optimizer : torch.optim.Optimizer

        Returns
        -------
        float
            The rate.
        """
        self.n_steps += 1
        rate = self.rate(self.n_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    @mark_as_saver
    def _save(self, path):
        torch.save({"n_steps": self.n_steps}, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        self.n_steps = torch.load(path, weights_only=True)["n_steps"]
