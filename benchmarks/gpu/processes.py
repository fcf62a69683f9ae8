"""Parts of the benchmark in processes of their own.

A kernel that reads where it must not leaves a CUDA device unusable for its process. So
each part runs in a forked process, and after such an error another goes on with the
next case. The parent never uses the device. That is why forks may.
"""

import multiprocessing
import os
import signal
import time
import traceback

import torch

from benchmarks.gpu.rows import FAILED, LEFT_OUT, Failed, LeftOut, Row, as_text

FORK = multiprocessing.get_context("fork")
GRACE_S = 60
"""How long a case may run on after the time of its part; then its process is killed."""


def call_in_process(function, *arguments):
    """The result of a function that another process calls.

    Raises
    ------
    RuntimeError
        If the function fails. The message is the function's error.
    """
    receiver, sender = FORK.Pipe(duplex=False)

    def work():
        try:
            sender.send((True, function(*arguments)))
        except Exception as error:
            sender.send((False, describe(error)))

    process = FORK.Process(target=work)
    process.start()
    sender.close()
    try:
        worked, result = receiver.recv()
    except EOFError:
        worked, result = False, "its process died"
    process.join()
    if not worked:
        raise RuntimeError(result)
    return result


def run_part(name, list_cases, seconds, add):
    """Measure every case of a part.

    Arguments
    ---------
    name : str
        Of the part.
    list_cases : callable
        From the time, by ``time.monotonic``, at which the part should end, to a list
        of :class:`~benchmarks.gpu.rows.Case`. It runs in the other process.
    seconds : float
        After which no case begins. What was left out is named.
    add : callable
        Takes each :class:`~benchmarks.gpu.rows.Row` as soon as it is known.
    """
    end = time.monotonic() + seconds
    first = 0
    while first is not None:
        first = _run_until_death(name, list_cases, end, add, first)


def _run_until_death(name, list_cases, end, add, first):
    """Measure the cases from one on; the next one if the process died, or None."""
    receiver, sender = FORK.Pipe(duplex=False)
    arguments = name, list_cases, end, first, sender
    process = FORK.Process(target=_work, args=arguments)
    process.start()
    sender.close()
    # One that begins after the end still has to name what is left out.
    limit = max(end, time.monotonic()) + GRACE_S
    place, current, died = first, None, f"{FAILED}: its process died"
    try:
        while receiver.poll(max(0.0, limit - time.monotonic())):
            kind, *message = receiver.recv()
            if kind == "row":
                add(*message)
            elif kind == "begin":
                place, current = message
            else:
                return message[0]
        died = f"{FAILED}: it did not end in time and was stopped"
    except EOFError:
        pass
    finally:
        _kill(process)
    if current is None:  # Not even the list of cases was made.
        add(Row(name, "all", status=died))
        return None
    add(Row(name, *current, status=died))
    return place + 1


def _kill(process):
    """End a process that has nothing more to say, and those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.join()


def _work(name, list_cases, end, first, sender):
    """Measure cases and send their rows; what runs in the process."""
    os.setsid()  # So that it can be killed with all that it starts.

    def add(*what, status):
        sender.send(("row", Row(name, *what, status=status)))

    try:
        cases = list_cases(end)
    except LeftOut as reason:
        add("all", status=f"{LEFT_OUT}: {reason}")
        cases = []
    except Exception as error:
        traceback.print_exc()
        add("all", status=f"{FAILED}: {describe(error)}")
        cases = []
    for place, case in enumerate(cases[first:], first):
        what = case.name, case.dtype
        if time.monotonic() > end:
            add(*what, status=f"{LEFT_OUT}: the time was over")
            continue
        sender.send(("begin", place, what))
        for row in _measure(name, case):
            sender.send(("row", row))
        if _device_is_unusable():
            add(*what, status=f"{FAILED}: it left the device unusable")
            sender.send(("end", place + 1))
            return
    sender.send(("end", None))


def _measure(name, case):
    """Yield the rows of one case."""
    try:
        for metric, value, unit in case.measure():
            yield Row(name, case.name, case.dtype, metric, as_text(value), unit)
    except LeftOut as reason:
        status = f"{LEFT_OUT}: {reason}"
    except torch.OutOfMemoryError:
        status = f"{LEFT_OUT}: the device's memory is too small"
    except Failed as reason:
        status = f"{FAILED}: {reason}"
    except Exception as error:
        traceback.print_exc()
        status = f"{FAILED}: {describe(error)}"
    else:
        return
    yield Row(name, case.name, case.dtype, status=status)


def _device_is_unusable():
    """Whether a kernel has broken this process's device."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def describe(error):
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
