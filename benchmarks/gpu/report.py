"""The page that ``python -m benchmarks gpu`` writes, from its rows."""

from benchmarks.gpu.rows import FAILED, LEFT_OUT, OK
from benchmarks.markdown import markdown_table

STEPS = ("forward", "forward + backward")


def write_page(path, rows, complete=True):
    """Write the page.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    rows : list of Row
        Those of ``gpu.csv``.
    complete : bool
        Whether all parts have had their time.
    """
    path.write_text(page(rows, complete) + "\n", encoding="utf-8")


def page(rows, complete=True):
    """The page as Markdown; see :func:`write_page`."""
    facts = {row.metric: row.value for row in rows if row.part == "environment"}
    lines = [f"# {facts.get('card', 'unknown device')}"]
    listed = ", ".join(f"{k} {v}" for k, v in facts.items() if k != "card")
    lines.append(f"`python -m benchmarks gpu`; {listed}")
    if not complete:
        lines.append("The run has not ended: parts are missing.")
    if "kernels" in facts:
        lines.append(
            "A shortened run on the CPU: it tests the command and the kernels' "
            "arithmetic. Its times say nothing of a GPU."
        )
    for title, section in SECTIONS.items():
        text = section(rows)
        if text:
            lines += [f"## {title}", text]
    return "\n\n".join(lines)


def _of(rows, part):
    """The measured rows of a part."""
    return [row for row in rows if row.part == part and row.status == OK]


def problems(rows):
    """What failed, or that nothing did."""
    failed = [row for row in rows if row.status.startswith(FAILED)]
    if not failed:
        return "Nothing failed."
    return _listed(failed)


def left_out(rows):
    """What was not measured and why: cases of one part and reason in one line."""
    return _listed([row for row in rows if row.status.startswith(LEFT_OUT)])


def _listed(rows):
    groups = {}
    for row in rows:
        case = f"{row.case} ({row.dtype})" if row.dtype else row.case
        groups.setdefault((row.part, row.status), []).append(case)
    lines = []
    for (part, status), cases in groups.items():
        reason = status.partition(": ")[2]
        named = f"{cases[0]} and {len(cases) - 1} more" if cases[1:] else cases[0]
        lines.append(f"- {part}: {named}: {reason}")
    return "\n".join(lines)


def parity(rows):
    """Errors over what is allowed, a column for each dtype."""
    found = {}
    judged = [row for row in rows if row.part == "parity"]
    dtypes = list(dict.fromkeys(row.dtype for row in judged if row.dtype))
    for row in judged:
        cells = found.setdefault(row.case, {})
        if row.metric == "error over allowed":
            cells[row.dtype] = f"{float(row.value):.2f}"
        elif row.status != OK:
            text = row.status.partition(": ")[0]
            number = cells.get(row.dtype)
            cells[row.dtype] = f"**{number} {text}**" if number else f"**{text}**"
    if not found:
        return ""
    lines = [[case, *(c.get(d, "") for d in dtypes)] for case, c in found.items()]
    note = (
        "The largest error of the output and of all gradients against float64, over "
        "what is allowed: twice the error of torch in the same precision, plus 1e-5. "
        "Above 1 is a failure."
    )
    return f"{note}\n\n{markdown_table(['case', *dtypes], lines)}"


def ceilings(rows):
    """Measured bandwidth and products."""
    lines = [
        [row.case, row.dtype, f"{float(row.value):.4g} {row.unit}"]
        for row in _of(rows, "ceilings")
    ]
    return markdown_table(["what", "arithmetic", "measured"], lines) if lines else ""


def times(rows):
    """Times by length, and what share of the ceilings they reach."""
    measured = _of(rows, "times")
    tables = []
    for dtype in dict.fromkeys(row.dtype for row in measured):
        for step in STEPS:
            mine = {
                (row.case, row.metric): float(row.value)
                for row in measured
                if row.dtype == dtype and row.metric.startswith(step)
            }
            tables.append(f"### {dtype}, {step}")
            tables.append(_times_table(mine, step, dtype, rows))
    note = (
        "Medians in ms and, in brackets, three things: the share of the measured "
        "bandwidth, if each input were read and each output written once; the share "
        "of the measured products of the dtype; the peak memory. Operators alone, "
        "without projections. Torch's paths of HyperMixing and HyperGLU compute half "
        "precision in float32, with TF32. HyperGLU sees a window of 256 frames, "
        "flash-linear-attention is causal."
    )
    return "\n\n".join([note, *tables]) if tables else ""


def _times_table(mine, step, dtype, rows):
    """Contenders down, sizes across."""
    bandwidth = _ceiling(rows, "bandwidth", "float32")
    products = _ceiling(rows, "products", dtype)
    table, batches = {}, {}
    for (case, metric), value in mine.items():
        if metric != step:
            continue
        contender, batch, model = case.split(" | ")
        shares = [
            _share(mine.get((case, f"{step}, least bytes")), bandwidth),
            _share(mine.get((case, f"{step}, products")), products),
        ]
        mib = mine.get((case, f"{step}, peak memory"))
        if mib is not None:
            shares.append(f"{mib:.0f} MiB")
        batches[batch] = model
        table.setdefault(contender, {})[batch] = f"{value:.3g} ({', '.join(shares)})"
    lines = [[name, *(c.get(b, "") for b in batches)] for name, c in table.items()]
    model = next(iter(batches.values()), "")
    return markdown_table([f"B x T, {model}", *batches], lines)


def _ceiling(rows, metric, dtype):
    values = [
        float(row.value)
        for row in _of(rows, "ceilings")
        if row.metric == metric and row.dtype == dtype
    ]
    return max(values, default=None)


def _share(value, ceiling):
    """A percentage of a ceiling, as far as both are known."""
    if value is None or ceiling is None:
        return "-"
    return f"{100 * value / ceiling:.2g} %"


def training(rows):
    """Steps of encoders, a line each."""
    note = (
        "Forward, backward and AdamW of the encoder without its front end, under "
        "autocast to bfloat16."
    )
    return _by_case(_of(rows, "training"), note)


def compiled(rows):
    """Encoders under torch.compile."""
    return _by_case(_of(rows, "compile"), "`torch.compile(encoder, fullgraph=True)`.")


def an4(rows):
    """The recipe's error rates."""
    return _by_case(_of(rows, "AN4"), "")


def ddp(rows):
    """Two processes against one."""
    return _by_case(_of(rows, "DDP"), "")


def _by_case(rows, note):
    """Cases down, metrics across, without percentiles."""
    if not rows:
        return ""
    metrics, table = {}, {}
    for row in rows:
        if "percentile" in row.metric:
            continue
        metrics[row.metric] = f"{row.metric}, {row.unit}" if row.unit else row.metric
        table.setdefault(row.case, {})[row.metric] = row.value
    lines = [
        [case.replace(" | ", ", "), *(cells.get(metric, "") for metric in metrics)]
        for case, cells in table.items()
    ]
    text = markdown_table(["case", *metrics.values()], lines)
    return f"{note}\n\n{text}" if note else text


SECTIONS = {
    "Failed": problems,
    "Left out": left_out,
    "Parity": parity,
    "Ceilings": ceilings,
    "Times": times,
    "Training step": training,
    "torch.compile": compiled,
    "Two devices": ddp,
    "AN4": an4,
}
