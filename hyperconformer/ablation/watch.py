"""A live table of an ablation's runs, whichever process does them."""

import time

from hyperconformer.ablation.plan import label
from hyperconformer.core.extras import import_extra
from hyperconformer.evaluation.plots import read_train_log

REFRESH_S = 2.0


def watch(ablation, planned, store, *, left=lambda: 0, console=None):
    """Show how far the runs are until all have ended; read only.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What is varied.
    planned : callable
        Returns the list of (dict, Run) that are known by now.
    store : hyperconformer.ablation.execute.Store
        Where their results are.
    left : callable
        Returns how many trials of a search have not ended.
    console : rich.console.Console, optional
        Where to; None = the terminal.

    Raises
    ------
    MissingExtraError
        If rich is missing.
    """
    live = import_extra("rich.live", "train", "live tables")
    with live.Live(
        console=console, auto_refresh=False, vertical_overflow="visible"
    ) as shown:
        while True:
            rows = [(arm, run, progress(run, store)) for arm, run in planned()]
            shown.update(table(ablation, rows, left()), refresh=True)
            ended = all(row["status"] in ("done", "failed") for _, _, row in rows)
            if ended and left() == 0:
                return
            time.sleep(REFRESH_S)


def progress(run, store):
    """How far a run is.

    Arguments
    ---------
    run : hyperconformer.ablation.plan.Run
        The run.
    store : hyperconformer.ablation.execute.Store
        Where its folder is.

    Returns
    -------
    dict
        ``status``: done, failed, begun or waiting. ``silent_s``: seconds since a run
        that has begun last wrote to its log. The columns of its training log, each the
        last value: ``updates``, ``valid WER`` and so on, after the first validation.
    """
    folder = store.of(run)
    row = store.row(run)
    found = {"status": row["status"] if row else "waiting"}
    try:
        written = (folder / "log.txt").stat().st_mtime
    except FileNotFoundError:
        return found
    if row is None:
        # A lock is not tried: who has it for a moment keeps the run from a worker.
        found.update(status="begun", silent_s=max(0.0, time.time() - written))
    log = folder / "output" / "train_log.txt"
    columns = read_train_log(log) if log.exists() else {}
    return {**found, **{name: values[-1] for name, values in columns.items()}}


def table(ablation, rows, left=0):
    """The table of :func:`watch`.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What is varied.
    rows : list of (dict, Run, dict)
        Arms, runs, and what :func:`progress` returns of each.
    left : int
        Trials of a search that have not ended.

    Returns
    -------
    rich.table.Table
    """
    rich_table = import_extra("rich.table", "train", "live tables")
    text = import_extra("rich.text", "train", "live tables")
    statuses = [row["status"] for _, _, row in rows]
    states = ("done", "begun", "failed", "waiting")
    counts = [f"{statuses.count(state)} {state}" for state in states]
    more = [f"{left} trials left"] if left else []
    shown = rich_table.Table(
        title=f"{ablation.name}: {', '.join(counts + more)}", title_justify="left"
    )
    metric = f"valid {ablation.metric}"
    shown.add_column("arm", overflow="fold")
    for name in ("seed", "updates", metric, "last sign of life"):
        shown.add_column(name, justify="right")
    shown.add_column("status")
    styles = {"done": "green", "failed": "bold red", "begun": "yellow"}
    for arm, run, row in rows:
        shown.add_row(
            text.Text(label(arm) or "(as the base)"),
            str(run.overrides["seed"]),
            _updates(row, ablation.budget.get("updates")),
            f"{row[metric]:.4g}" if metric in row else "",
            _ago(row["silent_s"]) if "silent_s" in row else "",
            text.Text(row["status"], styles.get(row["status"], "dim")),
        )
    return shown


def _updates(row, total):
    if "updates" not in row:
        return ""
    done = int(row["updates"])
    return f"{done} / {total}" if total else str(done)


def _ago(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago"
