"""Results as CSV, Markdown tables and pictures."""

import csv
import math
import pathlib

import numpy as np

from benchmarks.markdown import markdown_table
from benchmarks.timing import FIELDS, Row
from hyperconformer.core.documents import read_part, replace_part
from hyperconformer.core.extras import import_pyplot

MB = 1 << 20


def write_csv(path, rows, environment):
    """Write rows, each with the environment that it was measured in.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    rows : iterable of Row
        Measurements.
    environment : dict of str to str
        Further columns, the same in every row.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*FIELDS, *environment])
        writer.writeheader()
        for row in rows:
            values = {
                key: f"{value:.5g}" if isinstance(value, float) else value
                for key, value in vars(row).items()
            }
            writer.writerow({**values, **environment})


def read_csv(path):
    """Read what :func:`write_csv` wrote.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    rows : list of Row
    environment : dict of str to str
        Of the first row; empty without rows.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = [
        Row(**{name: _value(name, line[name]) for name in FIELDS}) for line in lines
    ]
    environment = lines[0] if lines else {}
    return rows, {k: v for k, v in environment.items() if k not in FIELDS}


def _value(name, text):
    if text == "":
        return None
    if name in ("frames", "rounds") or name.endswith("_bytes"):
        return int(text)
    if name in ("suite", "case", "step", "contender", "peer"):
        return text
    return float(text)


def geometric_mean(values):
    """The mean of ratios.

    Example
    -------
    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def exponent(frames, times, shortest=1000):
    """The b of ``time = a frames ** b``, fitted by least squares of logarithms.

    Arguments
    ---------
    frames : sequence of int
        Lengths.
    times : sequence of float
        A time each.
    shortest : int
        Shorter lengths, where calls cost more than tokens, are left out.

    Returns
    -------
    float
        NaN with fewer than two lengths.

    Example
    -------
    >>> round(exponent([100, 1000, 2000, 4000], [9.0, 1.0, 4.0, 16.0]), 3)
    2.0
    """
    points = [(f, t) for f, t in zip(frames, times) if f >= shortest]
    if len(points) < 2:
        return float("nan")
    logarithms = np.log(np.array(points, dtype=float))
    return float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])


def race_table(rows):
    """Timed contests, a line each."""
    lines = [
        [
            row.case,
            row.step,
            row.peer,
            f"{row.p50_ms:.1f}",
            f"{row.peer_p50_ms:.1f}",
            f"**{row.ratio_p50:.2f}** ({row.ratio_p20:.2f} to {row.ratio_p80:.2f})",
            f"{row.peak_bytes / MB:.0f} / {row.peer_peak_bytes / MB:.0f}",
            f"{row.difference:.0e}",
        ]
        for row in rows
    ]
    header = "case|step|peer|ours ms|peer ms|peer / ours|peak MiB|difference"
    return markdown_table(header.split("|"), lines)


def mean_table(rows):
    """Geometric means and minima of the speed-ups of each width."""
    groups = {}
    for row in rows:
        key = (row.case.split()[0], row.step)
        groups.setdefault(key, []).append(row.ratio_p50)
    lines = [
        [*key, f"**{geometric_mean(ratios):.2f}**", f"{min(ratios):.2f}"]
        for key, ratios in groups.items()
    ]
    return markdown_table(["width", "step", "geometric mean", "least"], lines)


def limit_table(rows):
    """HyperMixing's time over that of its minimal products."""
    lines = [
        [
            row.case,
            row.step,
            f"{row.p50_ms:.1f}",
            f"{row.peer_p50_ms:.1f}",
            f"**{1 / row.ratio_p50:.2f}**",
        ]
        for row in rows
    ]
    for step in dict.fromkeys(row.step for row in rows):
        mean = geometric_mean(1 / row.ratio_p50 for row in rows if row.step == step)
        lines.append(["geometric mean", step, "", "", f"**{mean:.2f}**"])
    return markdown_table(["case", "step", "ours ms", "products ms", "over"], lines)


def memory_table(rows):
    """What is kept for the backward pass and the peak."""
    lines = [
        [
            row.case,
            row.contender,
            ""
            if row.kept_bytes is None
            else f"{row.kept_bytes / (row.frames * 256 * 4):.2f}",
            f"{row.peak_bytes / MB:.1f}",
        ]
        for row in rows
    ]
    header = ["case", "mixer", "kept, in tensors of (T, D)", "peak MiB"]
    return markdown_table(header, lines)


def scaling_table(rows):
    """Milliseconds at every length, and the fitted exponent."""
    lengths = sorted({row.frames for row in rows})
    lines = []
    for name, times in _by_contender(rows).items():
        fitted = exponent(times.keys(), times.values())
        cells = [f"{times[n]:.1f}" if n in times else "" for n in lengths]
        lines.append([name, *cells, f"{fitted:.2f}"])
    return markdown_table(["mixer", *map(str, lengths), "exponent"], lines)


def streaming_table(rows):
    """Seconds of compute for a second of audio, in the first and the last minute."""
    lines = []
    for row in rows:
        chunk_ms = float(row.case.split()[-2])
        lines.append(
            [
                row.contender,
                f"{row.peer_p50_ms / chunk_ms:.4f}",
                f"{row.p50_ms / chunk_ms:.4f} "
                f"({row.p20_ms / chunk_ms:.4f} to {row.p80_ms / chunk_ms:.4f})",
                f"**{1 / row.ratio_p50:.3f}**",
                f"{row.peer_kept_bytes:,} / {row.kept_bytes:,}",
            ]
        )
    header = "mixer|first minute|last minute|last / first|state bytes"
    return markdown_table(header.split("|"), lines)


def _by_contender(rows):
    times = {}
    for row in rows:
        times.setdefault(row.contender, {})[row.frames] = row.p50_ms
    return times


TABLES = {
    "mixing": (mean_table, race_table),
    "limit": (limit_table,),
    "memory": (memory_table,),
    "linear": (race_table,),
    "encoder": (race_table,),
    "dispatch": (race_table,),
    "hyperglu": (race_table,),
    "scaling": (scaling_table,),
    "streaming": (streaming_table,),
}


def suite_markdown(suite, rows, environment):
    """A suite's tables under its name, with the command and the environment."""
    facts = ", ".join(f"{key} {value}" for key, value in environment.items())
    tables = [table(rows) for table in TABLES[suite]]
    command = f"`python -m benchmarks {suite}`"
    return "\n\n".join([f"## {suite}", f"{command}; {facts}", *tables])


def speedups(folder):
    """The README's table of speed-ups, from the CSV files of a folder.

    Arguments
    ---------
    folder : pathlib.Path
        With ``mixing.csv``, ``hyperglu.csv`` and ``encoder.csv``.

    Returns
    -------
    str
        Markdown.
    """
    found = {
        suite: read_csv(folder / f"{suite}.csv")[0]
        for suite in ("mixing", "hyperglu", "encoder")
    }
    ratios = {}
    for row in found["mixing"]:
        width, size = row.case.split()
        key = f"HyperMixing, {width}, four sizes, geometric mean", row.peer
        ratios.setdefault(key, {}).setdefault(row.step, []).append(row.ratio_p50)
        if (width, size) == ("D=256", "1x10000"):
            key = f"HyperMixing, {width}, one sequence of 10,000 tokens", row.peer
            ratios.setdefault(key, {})[row.step] = [row.ratio_p50]
    for row in [*found["hyperglu"], *found["encoder"]]:
        ratios.setdefault((row.case, row.peer), {})[row.step] = [row.ratio_p50]
    lines = []
    for (case, peer), steps in ratios.items():
        cells = [
            f"{geometric_mean(steps[step]):.1f}" if step in steps else ""
            for step in ("forward", "training")
        ]
        lines.append([case, peer.replace("speechbrain", "SpeechBrain"), *cells])
    header = ["ours", "peer", "forward", "forward + backward"]
    return markdown_table(header, lines)


def readme_marks(name):
    """What a part of the README that is made from results stands between."""
    return f"<!-- {name}: made from benchmarks/results -->", f"<!-- end of {name} -->"


def readme_part(readme, name):
    """Such a part, without its marks; None = there is none."""
    begin, end = readme_marks(name)
    part = read_part(readme.read_text("utf-8"), begin, end)
    return part and part.removeprefix(begin).removesuffix(end).strip()


def write_readme(readme, name, text):
    """Put Markdown into such a part of a file, or at the end of the file."""
    begin, end = readme_marks(name)
    before = readme.read_text("utf-8")
    part = f"{begin}\n\n{text}\n\n{end}"
    readme.write_text(replace_part(before, begin, end, part), encoding="utf-8")


def plot_scaling(rows, picture):
    """Time against length, both logarithmic.

    Arguments
    ---------
    rows : list of Row
        Of the suite "scaling".
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, times in _by_contender(rows).items():
        fitted = exponent(times.keys(), times.values())
        label = f"{name} (T^{fitted:.2f})"
        own = "speechbrain" not in name and "torch" not in name
        axes.loglog(
            list(times), list(times.values()), "o-" if own else "s--", label=label
        )
    axes.set(
        xlabel="frames T", ylabel="forward + backward (ms)", title="One mixer, D = 256"
    )
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def plot_encoder(rows, picture):
    """Training time of the whole encoder against length, beside its peers.

    Arguments
    ---------
    rows : list of Row
        Of the suite "encoder".
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 5))
    rows = [row for row in rows if row.step == "training" and " 1 x " in row.case]
    series = {}
    for row in rows:
        seconds = row.frames / 100
        series.setdefault("ours", {})[seconds] = row.p50_ms
        series.setdefault(row.peer, {})[seconds] = row.peer_p50_ms
    for name, times in series.items():
        points = sorted(times.items())
        axes.loglog(*zip(*points), "o-" if name == "ours" else "s--", label=name)
    axes.set(
        xlabel="seconds of audio",
        ylabel="training step (ms)",
        title="8M encoder with front end, one utterance",
    )
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def write_report(folder):
    """Write ``tables.md`` and the pictures from a folder's CSV files.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where ``SUITE.csv`` files lie.

    Returns
    -------
    str
        The Markdown.
    """
    folder = pathlib.Path(folder)
    parts = []
    for suite in TABLES:
        path = folder / f"{suite}.csv"
        if not path.exists():
            continue
        rows, environment = read_csv(path)
        parts.append(suite_markdown(suite, rows, environment))
        if suite == "scaling":
            plot_scaling(rows, folder / "scaling.png")
        if suite == "encoder":
            plot_encoder(rows, folder / "encoder.png")
    text = "# Benchmark results\n\n" + "\n\n".join(parts) + "\n"
    (folder / "tables.md").write_text(text, encoding="utf-8")
    return text
