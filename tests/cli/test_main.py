"""The command line as a whole."""

import pathlib
import subprocess
import sys

import pytest

import hyperconformer
from hyperconformer.cli.main import COMMANDS, main

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    [
        "info",
        "--help",
        "transcribe {0} {0} --model {1}",
        pytest.param("mixers", marks=pytest.mark.slow),  # it prints as `info` does
    ],
)
def test_closed_pipes_and_full_disks(files, tiny_model, command):
    command = command.format(files[0], tiny_model)
    shell = f"set -o pipefail; {sys.executable} -m hyperconformer.cli {command}"
    for rest in ("| true", "> /dev/full", ">&-"):
        done = subprocess.run(
            ["bash", "-c", f"{shell} {rest}"], cwd=ROOT, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr and "ignored" not in done.stderr
        if rest == "> /dev/full" and command != "--help":  # argparse is content
            assert done.returncode == 1
            assert "No space left on device" in done.stderr.splitlines()[-1]


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"hyperconformer {hyperconformer.__version__}\n"


def test_help_loads_nothing_that_is_slow():
    code = (
        "import sys\n"
        "from hyperconformer.cli.main import COMMANDS, main\n"
        "try:\n"
        "    main(['--help'])\n"
        "finally:\n"
        "    slow = {'numpy', 'speechbrain', 'torch'} & set(sys.modules)\n"
        "    assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_is_a_module_of_its_name():
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        with pytest.raises(SystemExit) as exit:
            main([name, "--help"])
        assert exit.value.code == 0
