"""Results come back from their files, and tables and fits say what they should."""

import math

import pytest

from benchmarks.__main__ import main
from benchmarks.report import (
    exponent,
    geometric_mean,
    limit_table,
    mean_table,
    race_table,
    read_csv,
    scaling_table,
    write_csv,
    write_report,
)
from benchmarks.suites import SUITES
from benchmarks.timing import Row


def race_row(case, ratio, **more):
    values = {
        "peer": "stock",
        "rounds": 9,
        "p50_ms": 2.0,
        "peer_p50_ms": 2.0 * ratio,
        "ratio_p20": ratio - 0.5,
        "ratio_p50": ratio,
        "ratio_p80": ratio + 0.5,
        "difference": 2e-7,
        "peak_bytes": 3 << 20,
        "peer_peak_bytes": 9 << 20,
    }
    return Row("mixing", case, "forward", "ours", 2000, **{**values, **more})


def sweep_row(name, frames, milliseconds):
    return Row("scaling", "D=256", "training", name, frames, p50_ms=milliseconds)


def test_rows_survive_the_file(tmp_path):
    rows = [race_row("D=256 8x250", 4.0), sweep_row("hypermixing", 100, 1.5)]
    facts = {"threads": 2, "commit": "abc"}
    write_csv(tmp_path / "mixing.csv", rows, facts)
    back, environment = read_csv(tmp_path / "mixing.csv")
    assert back == rows
    assert environment == {"threads": "2", "commit": "abc"}


def test_fit():
    frames = [100, 1000, 3000, 10_000]
    assert exponent(frames, [t**1.3 for t in frames]) == pytest.approx(1.3)
    assert math.isnan(exponent([100, 1000], [1.0, 2.0]))


def test_tables():
    rows = [race_row("D=256 8x250", 4.0), race_row("D=256 2x1000", 9.0)]
    assert geometric_mean([4.0, 9.0]) == pytest.approx(6.0)
    assert "| D=256 | forward | **6.00** | 4.00 |" in mean_table(rows)
    line = "| D=256 8x250 | forward | stock | 2.0 | 8.0 | **4.00** (3.50 to 4.50) |"
    assert f"{line} 3 / 9 | 2e-07 |" in race_table(rows)
    limit = limit_table([race_row("D=256 8x250", 0.5), race_row("D=256 2x1000", 0.125)])
    assert "| D=256 8x250 | forward | 2.0 | 1.0 | **2.00** |" in limit
    assert "| geometric mean | forward |  |  | **4.00** |" in limit
    sweep = [sweep_row("a", 1000, 1.0), sweep_row("a", 2000, 4.0)]
    table = scaling_table([*sweep, sweep_row("b", 1000, 7.0)])
    assert "| mixer | 1000 | 2000 | exponent |" in table
    assert "| a | 1.0 | 4.0 | 2.00 |" in table
    assert "| b | 7.0 |  | nan |" in table


def test_report_of_a_folder(tmp_path):
    sweep = [sweep_row("a", 1000, 1.0), sweep_row("a", 2000, 2.0)]
    write_csv(tmp_path / "scaling.csv", sweep, {"threads": 2})
    encoder = race_row("8M encoder 1 x 10 s", 3.0)
    encoder.step = "training"
    write_csv(tmp_path / "encoder.csv", [encoder], {"threads": 2})
    text = write_report(tmp_path)
    assert text == (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "`python -m benchmarks scaling`; threads 2" in text
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert (tmp_path / "encoder.png").stat().st_size > 0


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    row = race_row("D=256 8x250", 4.0)
    monkeypatch.setitem(SUITES, "mixing", lambda budget_s: iter([row]))
    assert main(["mixing", "--results", str(tmp_path)]) == 0
    assert "**4.00** (3.50 to 4.50)" in capsys.readouterr().out
    refused = lambda budget_s: iter([row, None])  # noqa: E731
    monkeypatch.setitem(SUITES, "mixing", refused)
    assert main(["mixing", "--results", str(tmp_path)]) == 1
    assert len(read_csv(tmp_path / "mixing.csv")[0]) == 1
    with pytest.raises(SystemExit):
        main(["mixng"])
    assert "unknown suite 'mixng'; known: mixing, limit" in capsys.readouterr().err
