"""What a report shows."""

import pathlib

import pytest

from hyperconformer.ablation import report
from hyperconformer.ablation.plan import METRICS, Ablation


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.017709643541, "0.01771"),
        (0.001, "0.001"),
        (8, "8"),
        (True, "True"),
        ("RoPEMHA", "RoPEMHA"),
    ],
)
def test_settings_are_shown_with_four_digits(value, shown):
    assert report._shown(value) == shown


@pytest.mark.parametrize("task", METRICS)
def test_every_metric_has_a_column_with_its_spread(task):
    ablation = Ablation("study", pathlib.Path("base.yaml"), metric=METRICS[task][-1])
    runs = [ablation.run({"lr": 1}, seed) for seed in (1, 2)]
    rows = [
        {"arm": {"lr": 1}, "run": run, **dict.fromkeys(METRICS[task], value)}
        for run, value in zip(runs, (3.0, 5.0))
    ]
    heading, _, line = report.table(ablation, rows, store=None).splitlines()
    for metric in METRICS[task]:
        assert metric in heading
    assert line.count("4.0") == line.count("± 1.4") == len(METRICS[task])
