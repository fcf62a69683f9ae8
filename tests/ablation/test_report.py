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


ERRORS = {  # of seeds 1 to 5
    "RoPEMHA": [8.0, 9.5, 12.0, 7.0, 10.0],
    "hypermixing": [7.0, 8.4, 11.0, 6.1, 9.0],
    "regularMHA": [8.4, 9.6, 12.9, 7.6, 9.9],
    "summary_mixing": [10.1, 11.4, 14.0, 9.0, 12.1],
}


def seeds_of(errors, **options):
    """An ablation of mixers, and its rows."""
    ablation = Ablation(
        "study",
        pathlib.Path("base.yaml"),
        combinations=tuple({"attention_type": name} for name in errors),
        seeds=(1, 2, 3, 4, 5),
        baseline={"attention_type": "RoPEMHA"},
        **options,
    )
    rows = [
        {"arm": arm, "run": ablation.run(arm, seed), "WER": error}
        for arm in ablation.arms()
        for seed, error in zip(ablation.seeds, errors[arm["attention_type"]])
    ]
    return ablation, rows


def cells(table):
    """First cell to the others, and the words before the table."""
    words, body = table.split("\n\n")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines()
    ]
    return words, {name: rest for name, *rest in lines}


def test_arms_are_compared_seed_by_seed():
    words, found = cells(report.seed_table(*seeds_of(ERRORS)))
    assert list(found)[2:] == ["hypermixing", "RoPEMHA", "regularMHA", "summary_mixing"]
    # The arms' own intervals overlap widely, those of the differences do not hold 0.
    assert found["RoPEMHA"] == ["5", "9.30", "6.91 to 11.69", "", "", "", ""]
    assert found["hypermixing"][:5] == [
        *("5", "8.30", "5.95 to 10.65"),
        *("-1.00", "-1.09 to -0.91"),
    ]
    assert found["hypermixing"][6] == "holds (p < 0.001)"
    assert found["summary_mixing"][6] == "does not hold (p < 0.001)"
    assert "below the baseline's" in words and "comparisons, 3." in words


def test_the_margin_moves_the_claim_and_not_the_difference():
    plain = cells(report.seed_table(*seeds_of(ERRORS)))[1]["regularMHA"]
    words, found = cells(report.seed_table(*seeds_of(ERRORS, margin=1.0)))
    near = found["regularMHA"]
    assert near[:6] == plain[:6] and plain[6] == "undecided (p 0.099)"
    assert near[6] == "holds (p 0.025)"
    assert found["summary_mixing"][6].startswith("does not hold")
    assert "at most 1 above the baseline's, in points" in words


def test_verdicts_are_corrected_for_the_number_of_arms():
    def said(errors):
        _, found = cells(report.seed_table(*seeds_of(errors)))
        return found["hypermixing"][6]

    errors = {"RoPEMHA": [8.0] * 5, "hypermixing": [7.0, 7.5, 6.5, 7.9, 7.2]}
    assert said(errors) == "holds (p 0.030)"
    others = {name: [8.1, 7.9, 8.0, 8.2, 7.8] for name in ("regularMHA", "hyperglu")}
    assert said({**errors, **others}) == "undecided (p 0.089)"


def test_only_seeds_that_both_have_are_compared():
    ablation, rows = seeds_of(ERRORS)
    _, found = cells(report.seed_table(ablation, rows[:5] + rows[6:8]))
    assert found["hypermixing"][0] == "2" and found["hypermixing"][3] == "-1.05"
    assert report.seed_table(ablation, rows[:1]) == ""
    assert cells(report.seed_table(ablation, rows[:3]))[0].startswith("Over seeds")
