"""The README's torchrun commands: one machine, two machines, a worker that dies."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from forked_runs import TRAIN

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SETTINGS = [
    "--max_batch_utterances=2",
    "--ckpt_interval_minutes=0",
    "--ckpt_interval_steps=1",
]
# As in the README: else what has restarted is sent to the addresses of before
# (github.com/pytorch/pytorch/issues/135712).
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
WEIGHTS = "model/model.safetensors"


@pytest.fixture(scope="module")
def start(tiny_arguments):
    """Starts train.py under torchrun, which prints into a file beside the folder."""

    def start(folder, *options):
        with open(f"{folder}.txt", "a") as log:
            return subprocess.Popen(
                [*TORCHRUN, *options, TRAIN, *tiny_arguments(folder, *SETTINGS)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT},
            )

    return start


@pytest.fixture(scope="module")
def one_machine(start, printed, tmp_path_factory):
    """Two processes on one machine, without any accident."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run = start(folder, "--standalone", "--nproc_per_node=2")
    assert run.wait() == 0, printed(folder)
    assert (folder / "wer_test.txt").stat().st_size > 0
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_two_machines_do_what_one_does(start, printed, one_machine, tmp_path):
    folder = tmp_path / "run"
    meeting = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
    ]
    machines = [start(folder, *meeting) for _ in range(2)]
    assert [machine.wait() for machine in machines] == [0, 0], printed(folder)
    assert (folder / WEIGHTS).read_bytes() == (one_machine / WEIGHTS).read_bytes()


def workers(agent):
    """The numbers of a torchrun's processes."""
    found = subprocess.run(
        ["pgrep", "-P", str(agent.pid), "-f", "train.py"],
        capture_output=True,
        text=True,
    )
    return list(map(int, found.stdout.split()))


@pytest.mark.parametrize("victim", [0, 1])
def test_all_restart_when_one_dies(start, printed, one_machine, tmp_path, victim):
    folder = tmp_path / "run"
    options = ["--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    run = start(folder, *options)
    while not list(folder.glob("checkpoints/*/CKPT.yaml")):
        assert run.poll() is None, printed(folder)
        time.sleep(0.05)
    os.kill(sorted(workers(run))[victim], signal.SIGKILL)
    assert run.wait() == 0, printed(folder)
    assert "Loading a checkpoint" in printed(folder)
    assert (folder / WEIGHTS).read_bytes() == (one_machine / WEIGHTS).read_bytes()
