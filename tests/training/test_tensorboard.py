"""One key logs a run for TensorBoard, a step an epoch."""

import pytest

from hyperconformer.evaluation.plots import read_train_log

pytest.importorskip("tensorboard")


def test_a_run_and_its_continuation_are_one_curve(train_tiny, printed, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    for epochs in (2, 3):
        more = ["--tensorboard=True", f"--number_of_epochs={epochs}"]
        assert train_tiny(folder, *more) == 0, printed(folder)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    log = read_train_log(folder / "train_log.txt")
    for tag, column in (("loss/valid", "valid loss"), ("updates", "updates")):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        # The text has three digits.
        assert [x.value for x in scalars] == pytest.approx(log[column], rel=5e-3)
