"""The command ``hyperconformer ablate``."""

import pathlib
import signal
import statistics
import sys

from hyperconformer.ablation.execute import Executor, Store
from hyperconformer.ablation.plan import label, planned_runs, read_ablation
from hyperconformer.ablation.report import write_report
from hyperconformer.ablation.search import Trials
from hyperconformer.ablation.watch import watch
from hyperconformer.config import read_config
from hyperconformer.core.shipped import find_ablation
from hyperconformer.training.command import parse


def ablate(options):
    """Do what is missing of an ablation, and report.

    Arguments
    ---------
    options : argparse.Namespace
        ``file``, ``dry_run``, ``watch``, ``jobs``, ``retry`` and ``results``, as
        ``hyperconformer ablate --help`` tells, and ``extra``, arguments for every run.

    Returns
    -------
    int
        0 all done, 1 a run failed or the file is wrong, 130 interrupted.
    """
    try:
        if options.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
        ablation = read_ablation(find_ablation(options.file))
        extra = tuple(options.extra)
        _check_extra(ablation, extra)
        results = pathlib.Path(options.results)
        store, folder = Store(results / "runs"), results / ablation.name
        trials = None
        if ablation.search is not None:
            create = not (options.dry_run or options.watch)
            trials = Trials(ablation, store, folder, extra, create)
    except (FileNotFoundError, ImportError, ValueError) as error:
        print(f"hyperconformer: {error}", file=sys.stderr)
        return 1
    planned = trials.planned() if trials is not None else planned_runs(ablation, extra)
    if options.dry_run:
        print(plan_text(ablation, planned, trials, store), end="")
        return 0
    if options.watch:
        return _watch(ablation, planned, trials, store)
    if options.retry:
        for _, run in planned:
            if (store.row(run) or {}).get("status") == "failed":
                store.forget(run)
    executor, interrupted = Executor(store, options.jobs), False
    # Both, as what runs in the background may have been told to ignore an interrupt.
    kinds = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(kind, signal.default_int_handler) for kind in kinds]
    try:
        if trials is not None:
            executor.execute(trials.runs(), trials.left(), trials.done)
            planned = trials.planned()
        else:
            executor.execute([run for _, run in planned], len(planned))
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; the same command goes on from here", file=sys.stderr)
    finally:
        for kind, handler in zip(kinds, handlers):
            signal.signal(kind, handler)
    report = write_report(ablation, planned, store, folder)
    print(report.read_text(encoding="utf-8"))
    print(f"report: {report}")
    failed = any((store.row(run) or {}).get("status") == "failed" for _, run in planned)
    return 130 if interrupted else int(failed)


def _check_extra(ablation, extra):
    """Refuse arguments for every run that no run would take."""
    file, _, overrides = parse([str(ablation.base), *extra])
    read_config(file, overrides)


def _watch(ablation, planned, trials, store):
    def known():
        return planned if trials is None else trials.planned()

    try:
        left = (lambda: 0) if trials is None else trials.left
        watch(ablation, known, store, left=left)
    except ImportError as error:
        print(f"hyperconformer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # how one ends it while runs go on elsewhere
    return 0


def plan_text(ablation, planned, trials, store):
    """What would be done, and what that will cost as far as recorded runs tell.

    Arguments
    ---------
    ablation : hyperconformer.ablation.plan.Ablation
        What to vary.
    planned : list of (dict, Run)
        The runs that are known.
    trials : hyperconformer.ablation.search.Trials or None
        Of a search.
    store : hyperconformer.ablation.execute.Store
        Where results are.

    Returns
    -------
    str
    """
    lines, known_s, left = [], [], 0
    for arm, run in planned:
        row = store.row(run)
        status = row["status"] if row else "missing"
        left += row is None
        if status == "done":
            known_s.append(row["wall_s"])
        seed = run.overrides["seed"]
        lines.append(f"{status:<8} {run.key} seed {seed}: {label(arm)}")
    if trials is not None:
        left = trials.left()
        search = ablation.search
        lines.append(
            f"{search.sampler} search, {search.trials} trials of each of "
            f"{len(ablation.arms())} arms over {', '.join(search.space)}"
        )
    budget = ", ".join(f"{value} {unit}" for unit, value in ablation.budget.items())
    lines.append(f"{left} runs to do, of {budget or 'as long as the base says'} each")
    if known_s:
        each = statistics.fmean(known_s)
        lines.append(
            f"about {left * each / 60:.0f} minutes one after another: "
            f"the {len(known_s)} that are done took {each:.0f} s on average"
        )
    else:
        lines.append("no run is done yet that would tell how long one takes")
    if planned:
        first = " ".join(planned[0][1].command("OUTPUT")[1:])
        lines.append(f"the first: python {first}")
    return "\n".join(lines) + "\n"
