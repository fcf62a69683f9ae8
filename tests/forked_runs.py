"""Runs of train.py in forked processes, which start at once and may be killed.

As a script it imports everything and then waits for lines of JSON, each of which asks
for one run; :class:`Runner` is the other end.
"""

import importlib
import json
import os
import pathlib
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time

# What runs import, some of it late. That takes longer than a tiny run itself.
MODULES = [
    "hyperconformer.transcribe.offline",
    "hyperconformer.model.transformer_asr",
    "hyperconformer.evaluation.plots",
    "hyperconformer.training.augment",
    "hyperconformer.training.language_model",
    "hyperconformer.training.asr",
    "matplotlib.pyplot",
    "speechbrain.augment.augmenter",
    "speechbrain.augment.freq_domain",
    "speechbrain.augment.time_domain",
    "speechbrain.lobes.features",
    "torch._dynamo",  # with the first optimizer
]
TRAIN = pathlib.Path(__file__).resolve().parents[1] / "train.py"


class Runner:
    """Starts runs of train.py; for use in a ``with`` statement."""

    def __enter__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TRAIN.parent)},
        )
        return self

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait()

    def run(
        self,
        arguments,
        log,
        death=None,
        processes=1,
        folder=None,
        draws=True,
        environment=None,
    ):
        """One run, its output in the file ``log``; returns its exit status.

        It works in ``folder``, else where the tests do, with more ``environment``.
        ``death`` is ``(moment, n)``: the run dies at the n-th moment of that kind, see
        MOMENTS, or ``("time", seconds)``. A status below zero is a signal's number.
        Without ``draws`` there is no curve.
        """
        words = [str(argument) for argument in arguments]
        folder = str(folder or os.getcwd())
        job = [words, str(log), death, processes, folder, draws, environment or {}]
        print(json.dumps(job), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())


def die():
    """What a power cut, an impatient cluster or a shortage of memory does."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(owner, name, n, replacement):
    """Let the n-th call of a function be another function's."""
    original, calls = getattr(owner, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == n:
            return replacement(original, *args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


def die_in_update(n):
    from hyperconformer.training.brain import TrainingBrain

    count_calls(TrainingBrain, "fit_batch", n, lambda *_: die())


def die_in_validation(n):
    from hyperconformer.training.brain import ASRBrain

    count_calls(ASRBrain, "evaluate_batch", n, lambda *_, **__: die())


def die_in_write(n):
    """With half of a file written."""
    import torch

    def half(save, state, path):
        save(state, path)
        os.truncate(path, os.path.getsize(path) // 2)
        die()

    count_calls(torch, "save", n, half)


def die_before_the_last_file(n):
    from hyperconformer.training import resume

    count_calls(resume, "write_atomically", n, lambda *_: die())


def die_in_deletion(n):
    """With one file of an old checkpoint deleted."""

    def one(_, folder):
        (pathlib.Path(folder) / "recognizer.ckpt").unlink()
        die()

    count_calls(shutil, "rmtree", n, one)


def fill_the_disk(n):
    """The n-th write fails for want of room."""
    import torch

    save = torch.save

    def full(_, state, path):
        pathlib.Path(path).symlink_to("/dev/full")
        save(state, path)

    count_calls(torch, "save", n, full)


MOMENTS = {
    "update": die_in_update,
    "validation": die_in_validation,
    "write": die_in_write,
    "last file": die_before_the_last_file,
    "deletion": die_in_deletion,
    "full disk": fill_the_disk,
}


def become(arguments, log, death, environment, folder, draws):
    """Turn this process into a run of train.py."""
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    if death and death[0] in MOMENTS:
        MOMENTS[death[0]](death[1])
    if not draws:
        draw_nothing()
    sys.argv = [str(TRAIN), *arguments]
    status = 0
    try:
        runpy.run_path(str(TRAIN), run_name="__main__")
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 2
    sys.stdout.flush()
    os._exit(status or 0)


def fork(arguments, log, death, processes, folder, draws, more):
    """Run, with one process or several; the highest status, or a signal's number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        child = os.fork()
        if child == 0:
            environment = environment if processes > 1 else {}
            become(arguments, log, death, {**environment, **more}, folder, draws)
        children.append(child)
    if death and death[0] == "time":
        time.sleep(death[1])
        for child in children:
            os.kill(child, signal.SIGKILL)  # not awaited yet: the number is still its
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return max(codes, key=abs)


def draw_nothing():
    """Leave out the training's curve, which takes a fourth of a tiny run."""
    from hyperconformer.training import brain

    brain.plot_training = lambda log, picture: None


def serve():
    for module in MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(fork(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
