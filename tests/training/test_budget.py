"""Training ends with its budget of updates or seconds, also when resumed."""

import time

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.checkpoints import Checkpointer
from speechbrain.utils.epoch_loop import EpochCounter

from hyperconformer.training.brain import TrainingBrain
from hyperconformer.training.data import draw_fraction
from hyperconformer.training.schedule import WarmupCosine

UPDATES_PER_EPOCH = 5


class Brain(TrainingBrain):
    """Learns one number, an update in 10 ms."""

    def compute_forward(self, batch, stage):
        time.sleep(0.01)
        return self.modules.model(batch)

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == sb.Stage.TRAIN:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
        else:
            self.checkpointer.save_and_keep_only(meta={"epoch": epoch})


def fit(
    folder,
    number_of_epochs,
    max_updates=None,
    max_train_s=None,
    batches=UPDATES_PER_EPOCH,
    optimizer=None,
    **run_options,
):
    """Train, or continue in the same folder."""
    model = torch.nn.Linear(2, 1)
    counter = EpochCounter(limit=number_of_epochs)
    schedule = WarmupCosine(peak_lr=0.1)
    checkpointer = Checkpointer(
        folder, recoverables={"model": model, "counter": counter, "schedule": schedule}
    )
    hparams = {
        "tensorboard": False,
        "number_of_epochs": number_of_epochs,
        "max_updates": max_updates,
        "max_train_s": max_train_s,
        "lr_schedule": schedule,
        "epoch_counter": counter,
    }
    brain = Brain(
        train_loader={
            "batch_sampler": range(batches),
            "generator": torch.Generator(),
        },
        modules={"model": model},
        opt_class=lambda parameters: torch.optim.SGD(
            parameters, lr=0.1, **(optimizer or {})
        ),
        hparams=hparams,
        run_opts={"noprogressbar": True, **run_options},
        checkpointer=checkpointer,
    )
    brain.rates = []
    loader = torch.utils.data.DataLoader(torch.randn(batches, 2))
    brain.fit(counter, loader, loader)
    return brain


def test_epochs_alone(tmp_path):
    brain = fit(tmp_path, 3)
    assert brain.optimizer_step == 15 and brain.rates[-1] == pytest.approx(0.0)
    assert 0.15 <= brain.train_s < 15


def test_updates(tmp_path):
    brain = fit(tmp_path, 100, max_updates=7)
    assert brain.optimizer_step == 7
    assert brain.rates[-1] == pytest.approx(0.0)  # the schedule ends with the budget


def test_a_spent_budget_trains_no_more_and_a_larger_one_goes_on(tmp_path):
    before = fit(tmp_path, 100, max_updates=7)
    spent = fit(tmp_path, 100, max_updates=7)
    assert spent.optimizer_step == 7 and spent.rates == []
    assert spent.train_s == before.train_s
    more = fit(tmp_path, 100, max_updates=12)
    assert more.optimizer_step == 12 and more.train_s > before.train_s


def test_seconds(tmp_path):
    brain = fit(tmp_path, 1_000_000, max_train_s=0.3)
    assert 0.3 <= brain.train_s
    assert brain.optimizer_step <= 30  # of 10 ms at least each
    assert brain.rates[-1] < 0.05  # the schedule follows the clock to its end


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes", [{"batches": 1}, {"batches": 40}, {"grad_accumulation_factor": 2}]
)
def test_the_rate_follows_the_epochs_whatever_the_batches_are(tmp_path, changes):
    assert fit(tmp_path, 2).rates[-1] == pytest.approx(0.0)
    schedule = WarmupCosine(peak_lr=0.1)
    resumed = fit(tmp_path, 4, **changes)
    expected = [schedule.rate(0.75), schedule.rate(1.0)]
    assert resumed.rates == pytest.approx(expected) and resumed.rates[0] > 0.01
    # An update's rate is set after the one before: the first one's by the checkpoint.
    again = fit(tmp_path, 5, max_updates=resumed.optimizer_step + 1, **changes)
    assert again.rates[-1] == pytest.approx(0.0)


def test_the_rate_follows_the_updates_of_a_budget(tmp_path):
    fit(tmp_path, 100, max_updates=10)
    brain = fit(tmp_path, 100, max_updates=20, batches=6)
    schedule = WarmupCosine(peak_lr=0.1)
    assert brain.rates == pytest.approx([schedule.rate(0.8), schedule.rate(1.0)])


def test_a_resumed_optimizer_has_the_settings_of_now(tmp_path):
    fit(tmp_path, 1, optimizer={"weight_decay": 0.1})
    brain = fit(tmp_path, 2, optimizer={"weight_decay": 0.2})
    assert brain.optimizer.param_groups[0]["weight_decay"] == 0.2


def test_an_epoch_without_an_update_is_refused(tmp_path):
    with pytest.raises(ValueError, match="grad_accumulation_factor is 6, .* only 5"):
        fit(tmp_path, 1, grad_accumulation_factor=6)


def test_fractions_are_nested_and_keep_the_order():
    dataset = DynamicItemDataset({f"u{i}": {"n": i} for i in range(10)})
    drawn = [draw_fraction(dataset, part, seed=3).data_ids for part in (0.2, 0.5, 1.0)]
    assert list(map(len, drawn)) == [2, 5, 10]
    assert set(drawn[0]) < set(drawn[1]) and drawn[2] == dataset.data_ids
    assert drawn[1] == [name for name in dataset.data_ids if name in drawn[1]]
    assert drawn[1] != draw_fraction(dataset, 0.5, seed=4).data_ids
    assert len(draw_fraction(dataset, 0.01, seed=3)) == 1
    for wrong in (0.0, 1.1):
        with pytest.raises(ValueError, match="train_fraction"):
            draw_fraction(dataset, wrong, seed=3)
