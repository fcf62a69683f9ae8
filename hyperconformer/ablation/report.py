"""Tables and pictures of an ablation."""

import collections
import csv
import pathlib
import statistics

from hyperconformer.ablation import pictures
from hyperconformer.ablation.plan import label
from hyperconformer.ablation.statistics import (
    ALPHA,
    expected_best,
    holm,
    mean_interval,
    paired_p,
    read_errors,
    verdict,
)
from hyperconformer.evaluation.bootstrap import error_rate_difference

# Column of a row to its heading in the table and how a value is printed there.
COLUMNS = {
    "WER": ("WER %", "{:.1f}"),
    "CER": ("CER %", "{:.1f}"),
    "loss": ("loss", "{:.3f}"),
    "token perplexity": ("token perplexity", "{:.2f}"),
    "word perplexity": ("word perplexity", "{:.2f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "macs_per_audio_s": ("multiply-adds / s of speech", "{:,.0f}"),
    "train_s": ("training, s", "{:.0f}"),
    "updates_per_s": ("updates / s", "{:.2f}"),
    "times_real_time": ("x real time", "{:.0f}"),
    "peak_memory_mb": ("memory, MB", "{:.0f}"),
}

# Those that differ from seed to seed enough to tell how much.
MEASURES = ("WER", "CER", "loss", "token perplexity", "word perplexity")


def write_report(ablation, planned, store, folder):
    """Write ``results.csv``, ``README.md`` and the pictures.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What was varied.
    planned : list of (dict, Run)
        Its arms' overrides and runs, done or not.
    store : hyperconformer.ablation.execute.Store
        Where their rows are.
    folder : str or pathlib.Path
        Where the report goes.

    Returns
    -------
    pathlib.Path
        The Markdown file.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"arm": arm, "run": run, **(store.row(run) or {"status": "missing"})}
        for arm, run in planned
    ]
    for row in rows:
        add_derived(row)
    write_csv(rows, folder / "results.csv")
    done = [row for row in rows if row["status"] == "done"]
    parts = [f"# {ablation.name}", ablation.about.strip(), _state(ablation, rows)]
    if done:
        parts += [table(ablation, done, store), seed_table(ablation, done)]
        parts += [
            f"![{title}]({file})"
            for title, file in _draw(ablation, done, store, folder).items()
        ]
        if ablation.search is not None:
            parts.append(_search_table(ablation, done))
        if any("against_length" in row for row in done):
            parts.append(_length_table(done))
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        lines = [f"- {label(row['arm'])}: `{row['error']}`" for row in failed]
        parts.append("\n".join(["Failed:", "", *lines]))
    file = folder / "README.md"
    file.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return file


def add_derived(row):
    """Add to a row what follows from its measures."""
    if row.get("train_s"):
        row["updates_per_s"] = row["updates"] / row["train_s"]
    if row.get("peak_memory_bytes"):
        row["peak_memory_mb"] = row["peak_memory_bytes"] / 2**20


def write_csv(rows, path):
    """Write one line a run.

    Arguments
    ---------
    rows : list of dict
        Rows of :func:`write_report`.
    path : pathlib.Path
        The file.
    """
    plain = []
    for row in rows:
        flat = {
            "run": row["run"].key,
            **row["arm"],
            "seed": _seed(row),
        }
        # Overrides stand in the command; what is no number or word needs no column.
        flat.update(
            (key, value)
            for key, value in row.items()
            if not isinstance(value, (dict, list)) and key != "run"
        )
        plain.append(flat)
    columns = list(dict.fromkeys(key for row in plain for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(plain)


def group(rows):
    """Rows by arm, in the order of their first row.

    Arguments
    ---------
    rows : list of dict
        Rows of :func:`write_report`.

    Returns
    -------
    list of (dict, list of dict)
        Every arm with its rows, a row a seed.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        groups[label(row["arm"])].append(row)
    return [(members[0]["arm"], members) for members in groups.values()]


def table(ablation, rows, store):
    """A Markdown table, best arm first: means over seeds with their spread.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What was varied.
    rows : list of dict
        Those that are done.
    store : hyperconformer.ablation.execute.Store
        Where the runs' folders are.

    Returns
    -------
    str
    """
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    latencies = dict.fromkeys(name for row in rows for name in row if _is_latency(name))
    shown[1:1] = latencies  # after the first error rate
    if ablation.metric in shown:  # what is asked for stands first
        shown.remove(ablation.metric)
        shown.insert(0, ablation.metric)
    groups = sorted(
        group(rows), key=lambda pair: _mean(pair[1], ablation.metric, float("inf"))
    )
    unit = {"WER": "word", "CER": "character"}.get(ablation.metric)
    compared = ablation.baseline is not None and unit is not None
    by_arm = {label(arm): members for arm, members in groups}
    names = list(dict.fromkeys(key for arm, _ in groups for key in arm))
    headings = [f"`{name}`" for name in names] + ["seeds"]
    headings += [_heading(name) for name in shown]
    if compared:
        heading = f"{ablation.metric} minus baseline, 95 %"
        headings.insert(len(names) + 2, heading)
    lines = [headings, ["---"] * len(names) + ["---:"] * (len(headings) - len(names))]
    for arm, members in groups:
        cells = [_shown(arm.get(name, "")) for name in names] + [str(len(members))]
        cells += [_cell(members, name) for name in shown]
        if compared:
            other = ablation.baseline_of(arm)
            baseline = by_arm.get(label(other), []) if other is not None else []
            cells.insert(len(names) + 2, _difference(members, baseline, store, unit))
        lines.append(cells)
    return _table_of(lines)


def seed_table(ablation, rows):
    """A Markdown table of means over seeds, paired differences, tests and verdicts.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What was varied.
    rows : list of dict
        Those that are done.

    Returns
    -------
    str
        With the rule before it; empty if no arm has two seeds, or with a search.
    """
    metric, margin = ablation.metric, ablation.margin
    arms = {
        label(arm): {_seed(row): row[metric] for row in members if metric in row}
        for arm, members in group(rows)
    }
    arms = {name: errors for name, errors in arms.items() if len(errors) > 1}
    if not arms or ablation.search is not None:
        return ""
    differences = _differences_by_seed(ablation, arms)
    p_equal, p_claim = (
        dict(zip(differences, holm([paired_p(d, at) for d in differences.values()])))
        for at in (0.0, margin)
    )
    form = "{:.2f}" if metric in pictures.PERCENT else COLUMNS[metric][1]
    headings = ["arm", "seeds", COLUMNS[metric][0], "95 % interval"]
    if differences:
        headings += ["minus baseline", "95 % interval", "p", "claim"]
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1)]
    for name, by_seed in sorted(arms.items(), key=lambda arm: _mean_of(arm[1])):
        errors = list(by_seed.values())
        cells = [name, str(len(errors)), *_mean_cells(errors, form)]
        if name in differences:
            claim = verdict(differences[name], p_claim[name], margin)
            cells += _mean_cells(differences[name], form.replace(":", ":+"))
            cells += [_p_cell(p_equal[name]), f"{claim} (p {_p_cell(p_claim[name])})"]
        lines.append(cells + [""] * (len(headings) - len(cells)))
    body = _table_of(lines)
    return f"{_rule(ablation, len(differences))}\n\n{body}"


def _table_of(lines):
    """Markdown of lines of cells, headings and ruler included."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _differences_by_seed(ablation, arms):
    """Each arm's errors minus its baseline's, for the seeds that both have.

    Of fewer than two seeds nothing is to be said.
    """
    differences = {}
    for arm in ablation.arms():
        other = ablation.baseline_of(arm)
        if other in (None, arm):
            continue
        ours, theirs = arms.get(label(arm), {}), arms.get(label(other), {})
        paired = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if len(paired) > 1:
            differences[label(arm)] = paired
    return differences


def _rule(ablation, tests):
    """How the intervals and verdicts of :func:`seed_table` come about."""
    if not tests:
        return "Over seeds: means with t intervals."
    bound = "below the baseline's"
    if ablation.margin:
        bound = f"at most {ablation.margin:g} above the baseline's"
        bound += ", in points" if ablation.metric in pictures.PERCENT else ""
    return (
        "Over seeds: means with t intervals; differences are paired by seed. p: no "
        f"difference. The claim is that an arm's {ablation.metric} is {bound}. It "
        "holds, or does not hold, if the mean difference lies on that side of the "
        f"bound and a paired t-test against the bound gives p < {ALPHA:g}; else it is "
        "undecided. Both p are two-sided, with Holm's correction for the number of "
        f"comparisons, {tests}. The intervals are not corrected."
    )


def _mean_cells(values, form):
    low, high = mean_interval(values)
    return [
        form.format(statistics.fmean(values)),
        f"{form.format(low)} to {form.format(high)}",
    ]


def _p_cell(p_value):
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _seed(row):
    return row["run"].overrides["seed"]


def _shown(value):
    """A setting as a reader wants it; the results file has every digit."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_latency(name):
    return name.startswith("WER_") and name.endswith("ms")


def _heading(name):
    return f"WER % at {name[4:]}" if _is_latency(name) else COLUMNS[name][0]


def _cell(members, name):
    values = [row[name] for row in members if row.get(name) is not None]
    if not values:
        return ""
    form = COLUMNS.get(name, COLUMNS["WER"])[1]
    cell = form.format(statistics.fmean(values))
    if len(values) > 1 and (name in MEASURES or _is_latency(name)):
        cell += " ± " + form.format(statistics.stdev(values))
    return cell


def _mean_of(by_seed):
    return statistics.fmean(by_seed.values())


def _mean(members, name, missing):
    values = [row[name] for row in members if row.get(name) is not None]
    return statistics.fmean(values) if values else missing


def _difference(members, baseline, store, unit):
    """Over the seeds that both have; of the baseline itself nothing is to be said."""
    by_seed = {_seed(row): row for row in baseline}
    pairs = [(row, by_seed[_seed(row)]) for row in members if _seed(row) in by_seed]
    if not pairs:
        return ""
    if any(row["run"].key == other["run"].key for row, other in pairs):
        return "baseline"
    ours, theirs = (
        [
            read_errors(
                store.of(row["run"]) / "output" / f"errors_{row['test_split']}.csv",
                unit,
            )
            for row in side
        ]
        for side in zip(*pairs)
    )
    low, high = error_rate_difference(ours, theirs)
    return f"{low:+.1f} to {high:+.1f}"


def _state(ablation, rows):
    """What stands, and what it cost."""
    done = [row for row in rows if row["status"] == "done"]
    counts = collections.Counter(row["status"] for row in rows)
    budget = ", ".join(f"{value} {unit}" for unit, value in ablation.budget.items())
    words = [
        f"{counts['done']} of {len(rows)} runs done, {counts['failed']} failed.",
        f"Budget of a run: {budget}." if budget else "",
        f"They took {sum(row['wall_s'] for row in done) / 60:.0f} minutes together.",
    ]
    if any("WER_low" in row for row in done):
        words.append(
            "± is the standard deviation over seeds. The difference is a paired "
            "bootstrap interval over the test utterances: it does not hold what other "
            "seeds would change."
        )
    return " ".join(filter(None, words))


def _search_table(ablation, rows):
    """Expected best error against the number of trials, arm by arm."""
    curves = search_curves(ablation, rows)
    longest = max(map(len, curves.values()))
    budgets = sorted({n for n in (1, 2, 4, 8, 16, 32, 64, longest) if n <= longest})
    lines = [
        ["arm", *(f"{n} trials" for n in budgets)],
        ["---"] + ["---:"] * len(budgets),
    ]
    for name, curve in curves.items():
        cells = [f"{curve[n - 1]:.1f}" if n <= len(curve) else "" for n in budgets]
        lines.append([name, *cells])
    body = _table_of(lines)
    return f"Expected best {ablation.metric} on the validation set:\n\n{body}"


def search_curves(ablation, rows):
    """The expected best of 1, 2, ... trials of every arm.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        With a search.
    rows : list of dict
        Those that are done.

    Returns
    -------
    dict of str to list of float
        Arm to its curve.
    """
    values = collections.defaultdict(list)
    for row in rows:
        arm = {k: v for k, v in row["arm"].items() if k not in ablation.search.space}
        values[label(arm)].append(row[f"valid_{ablation.metric}"])
    return {
        name: [expected_best(found, n) for n in range(1, len(found) + 1)]
        for name, found in values.items()
    }


def _length_table(rows):
    """Time of an update and what it keeps for the backward pass, against T."""
    lengths = [point["audio_s"] for point in rows[0]["against_length"]]
    parts = []
    for name, (title, scale, form) in pictures.LENGTH_MEASURES.items():
        lines = [["", *(f"{audio_s} s" for audio_s in lengths)]]
        lines.append(["---"] + ["---:"] * len(lengths))
        for row in rows:
            found = {p["audio_s"]: p[name] * scale for p in row["against_length"]}
            cells = [form.format(found[s]) if s in found else "" for s in lengths]
            lines.append([label(row["arm"]), *cells])
        body = _table_of(lines)
        parts.append(f"{title}:\n\n{body}")
    return "\n\n".join(parts)


def _draw(ablation, rows, store, folder):
    """Draw what the rows have; title to file name."""
    drawn = {}
    metric = ablation.metric
    measured = [(arm, found) for arm, found in group(rows) if metric in found[0]]
    costs = [
        (
            label(arm),
            {name: _mean(found, name, None) for name in pictures.COST_MEASURES},
            _mean(found, metric, None),
            mean_interval([row[metric] for row in found]),
        )
        for arm, found in measured
        if "macs_per_audio_s" in found[0]
    ]
    if costs:
        pictures.plot_cost(costs, metric, folder / "cost.png")
        drawn[f"{metric} against cost"] = "cost.png"
    logs = {
        label(arm): [store.of(row["run"]) / "output" / "train_log.txt" for row in found]
        for arm, found in measured
    }
    if logs and ablation.search is None:
        pictures.plot_curves(logs, metric, folder / "curves.png")
        drawn["Learning curves"] = "curves.png"
    axes = [name for name in ablation.axes if _is_numeric(rows, name)]
    if measured and ablation.search is None and len(axes) == 1:
        lines = collections.defaultdict(list)
        for arm, found in measured:
            rest = {key: value for key, value in arm.items() if key != axes[0]}
            values = [row[metric] for row in found]
            lines[label(rest)].append((arm[axes[0]], values))
        pictures.plot_axis(lines, axes[0], metric, folder / "axis.png")
        drawn[f"{metric} against {axes[0]}"] = "axis.png"
    if ablation.search is not None:
        curves = search_curves(ablation, rows)
        pictures.plot_search(curves, metric, folder / "search.png")
        drawn[f"Expected best {metric} against trials"] = "search.png"
    lengths = {
        label(row["arm"]): row["against_length"]
        for row in rows
        if "against_length" in row
    }
    if lengths:
        pictures.plot_lengths(lengths, folder / "length.png")
        drawn["Time and memory against length"] = "length.png"
    return drawn


def _is_numeric(rows, name):
    values = {str(row["arm"].get(name)): row["arm"].get(name) for row in rows}.values()
    numbers = [
        value
        for value in values
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return len(numbers) == len(values) > 1
