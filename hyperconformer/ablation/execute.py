"""Runs the training command for whatever is missing, and keeps one row a run."""

import concurrent.futures
import datetime
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import threading
import time

from filelock import FileLock, Timeout
from tqdm import tqdm

from hyperconformer.ablation.statistics import read_errors
from hyperconformer.core.files import write_atomically
from hyperconformer.evaluation.bootstrap import error_rate_interval


class Store:
    """The results of runs: a folder each, named after what the run does.

    A folder holds ``row.json`` once the run is done or has failed. While it runs, its
    folder is locked, so that several processes, or machines with this folder in
    common, share the work; the system takes the lock from a process that dies.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where the folders are.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def of(self, run):
        """A run's folder."""
        return self.folder / run.key

    def row(self, run):
        """What is known of a run: a dict, or None while it is not done."""
        path = self.of(run) / "row.json"
        return json.loads(path.read_text()) if path.exists() else None

    def forget(self, run):
        """Make a run missing again; what it has trained so far stays."""
        (self.of(run) / "row.json").unlink()


class Executor:
    """Does runs one after another, or several at once, until told to stop.

    Arguments
    ---------
    store : Store
        Where results go.
    jobs : int
        Runs at once.
    """

    def __init__(self, store, jobs=1):
        self.store = store
        self.jobs = jobs
        self.processes = set()
        self.stopped = threading.Event()
        self.commit = current_commit()

    def execute(self, runs, total, done=lambda run, row: None):
        """Do what is missing; failures are recorded and the rest goes on.

        Arguments
        ---------
        runs : iterable of Run
            They may be made one by one, in answer to results.
        total : int
            How many they will be, for the progress bar.
        done : callable
            Called with each run and its row, None where another process has it.

        Raises
        ------
        KeyboardInterrupt
            When interrupted, after every run was stopped. Each continues from its
            last checkpoint when it is done again.
        """
        runs, lock = iter(runs), threading.Lock()

        def work():
            while not self.stopped.is_set():
                with lock:
                    run = next(runs, None)
                if run is None:
                    return
                row = self.do(run)
                with lock:
                    if self.stopped.is_set():
                        return
                    done(run, row)
                    failures.extend(
                        [run] if (row or {}).get("status") == "failed" else []
                    )
                    bar.set_postfix(failed=len(failures))
                    bar.update()

        failures = []
        with tqdm(total=total, unit="run", dynamic_ncols=True) as bar:
            with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
                workers = [pool.submit(work) for _ in range(self.jobs)]
                try:
                    for worker in workers:
                        worker.result()
                finally:
                    self.stop()

    def do(self, run):
        """Do one run, unless its row is there or another process is at it.

        Arguments
        ---------
        run : hyperconformer.ablation.plan.Run
            What to do.

        Returns
        -------
        dict or None
            Its row; None if it was interrupted or is another's.
        """
        folder = self.store.of(run)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock", timeout=0):
                return self.store.row(run) or self._train(run, folder)
        except Timeout:
            return None

    def stop(self):
        """Let no more runs begin, and end those that run."""
        self.stopped.set()
        for process in list(self.processes):
            process.terminate()

    def _train(self, run, folder):
        command = run.command(folder / "output")
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        started = time.monotonic()
        with open(folder / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": str(threads), **os.environ},
            )
            self.processes.add(process)
            if self.stopped.is_set():  # it was told between the check and now
                process.terminate()
            code = process.wait()
            self.processes.discard(process)
        # An interrupt reaches parent and child in either order: no failure.
        if self.stopped.is_set() or -code in (signal.SIGINT, signal.SIGTERM):
            return None
        row = {
            "status": "done" if code == 0 else "failed",
            "overrides": run.overrides,
            "command": shlex.join(["python", *command[1:]]),
            "commit": self.commit,
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "wall_s": time.monotonic() - started,
        }
        if code == 0:
            row.update(read_measures(folder / "output"))
            # They were there to continue from, and are most of what a run leaves.
            shutil.rmtree(folder / "output" / "checkpoints", ignore_errors=True)
        else:
            row["error"] = _last_words(folder / "log.txt", code)
        write_atomically(folder / "row.json", json.dumps(row, indent=2).encode())
        return row


def read_measures(output):
    """What a finished training measured, flat.

    Arguments
    ---------
    output : pathlib.Path
        The run's folder.

    Returns
    -------
    dict
        Measures of the first test set bear their own names, those of the validation
        set begin with ``valid_``. A word error rate comes with its 95 % interval;
        other latencies of the set with theirs (``WER_640ms``).
    """
    measures = json.loads((output / "results.json").read_text())
    splits = measures.pop("splits")
    valid, test = measures.pop("valid"), measures.pop("test")
    measures["test_split"] = test
    measures.update({f"valid_{key}": value for key, value in splits[valid].items()})
    measures.update(splits[test])
    for name, values in splits.items():
        if name.startswith(f"{test}_") and name.endswith("ms"):
            measures["WER" + name[len(test) :]] = values["WER"]
    errors = output / f"errors_{test}.csv"
    if errors.exists():
        interval = error_rate_interval(read_errors(errors))
        measures["WER_low"], measures["WER_high"] = interval
    return measures


def current_commit():
    """The commit of the working folder, with ``+`` where it has been changed since.

    Returns
    -------
    str or None
        None where there is no git.
    """
    git = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _last_words(log, code):
    """What a failed run said last, else how it ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    return lines[-1] if lines else f"exit code {code}"
