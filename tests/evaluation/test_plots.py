"""The pictures of training logs."""

import pytest
from matplotlib import pyplot

from hyperconformer.evaluation.plots import plot_training

LINE = (
    "epoch: {}, lr: 1.0e-03, updates: 9 - train loss: {} - valid loss: 8.0e-01, "
    "valid WER: 50.0, valid CER: 20.0\n"
)


@pytest.mark.parametrize("last,scale", [("6.0e-01", "log"), ("-4.0e-01", "linear")])
def test_every_loss_is_seen(last, scale, tmp_path, monkeypatch):
    log = tmp_path / "train_log.txt"
    log.write_text(LINE.format(1, "9.0e-01") + LINE.format(2, last))
    close = pyplot.close
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    try:
        plot_training(log, tmp_path / "curve.png")
        losses, errors = pyplot.gcf().axes
        train, _ = losses.lines
        assert list(train.get_ydata()) == [0.9, float(last)]
        assert losses.get_yscale() == scale
        assert errors.get_ylabel() == "validation error (%)"
    finally:
        close("all")
