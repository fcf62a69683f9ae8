"""``python -m benchmarks gpu``: its parts, what breaks in them, the whole on a CPU."""

import csv
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import psutil
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.gpu import an4, ddp, device, errors, parity, processes, times
from benchmarks.gpu.report import page
from benchmarks.gpu.rows import Case, Failed, LeftOut, Measure, Row, RowFile, read_rows

ROOT = pathlib.Path(gpu.__file__).parents[2]
# All that a machine with PyTorch and Triton may lack.
BLOCKED = (
    "import sys\n"
    "for name in ('speechbrain', 'hyperpyyaml', 'sentencepiece', 'soundfile', 'scipy',"
    " 'matplotlib', 'torchaudio', 'ruamel', 'pandas', 'tqdm', 'huggingface_hub'):\n"
    "    sys.modules[name] = None\n"
)
QUICK = types.SimpleNamespace(quick=True, device="cpu")


def test_it_needs_pytorch_and_triton_alone():
    code = BLOCKED + (
        "sys.modules['numpy'] = None\n"
        "import torch\n"
        "from benchmarks.gpu import an4, ceilings, ddp, device, parity, processes\n"
        "from benchmarks.gpu import report, times, training\n"
        "for name in training.MIXERS:\n"
        "    encoder = training.build_encoder('tiny', name, 'cpu')\n"
        "encoder.eval()(torch.randn(2, 9, 16))[0].sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow  # a minute or two, most of it torch.compile
def test_the_whole_command_on_a_cpu(tmp_path):
    code = BLOCKED + (
        "from benchmarks.__main__ import main\n"
        "sys.exit(main(['gpu', '--device=cpu', '--quick', '--results', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "gpu.csv")
    measured = {row.part for row in rows if row.status == "ok"}
    assert measured == {
        *("environment", "parity", "ceilings", "times", "training", "compile")
    }
    judged = [row for row in rows if row.metric == "error over allowed"]
    assert {row.dtype for row in judged} == {"float32", "bfloat16", "float16"}
    assert {row.case.split(",")[0] for row in judged} == {"HyperMixing", "HyperGLU"}
    assert all(0 < float(row.value) <= 1 for row in judged)
    reasons = {row.part: row.status for row in rows if row.status != "ok"}
    assert reasons["AN4"] == "left out: no folder was given with --an4"
    assert reasons["DDP"].startswith("left out: needs two devices")
    text = (tmp_path / "gpu.md").read_text()
    assert text == page(rows) + "\n"
    assert text.startswith(f"# {device.processor()}\n") and "Nothing failed." in text
    assert "parity | HyperMixing, one frame | float32" in done.stdout


@pytest.fixture
def no_gpu(monkeypatch):
    """As on a machine without one; the environment is as before afterwards."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    monkeypatch.setattr(device, "has_gpu", lambda: False)


def test_without_a_gpu_it_says_what_to_do(no_gpu, tmp_path, capsys):
    assert gpu.main(["--results", str(tmp_path / "new")]) == 2
    told = capsys.readouterr().err
    assert "no CUDA device" in told and "--device cpu --quick" in told
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "cpu"], "add --quick"),
        (["--an4", "/nowhere"], "/nowhere has no folder etc"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_kernel_fails_the_command(no_gpu, monkeypatch, tmp_path, capsys):
    """Every part but the parity is empty, and there one error is too large."""

    def list_cases(settings, end):
        assert settings == gpu.Settings("cuda", True, None, tmp_path)
        judged = parity.judge([(1.0, 2.0, 4.0), (3.0, 2.0, 4.0)])
        return [Case("HyperMixing, wrong", "bfloat16", lambda: judged)]

    for name in ("ceilings", "times", "an4", "ddp"):
        module = f"benchmarks.gpu.{name}.list_cases"
        monkeypatch.setattr(module, lambda settings, end: [])
    for name in ("list_steps", "list_compiled"):
        monkeypatch.setattr(f"benchmarks.gpu.training.{name}", lambda settings, end: [])
    monkeypatch.setattr(parity, "list_cases", list_cases)
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(device, "facts", lambda name: {"card": "NVIDIA X"})
    assert gpu.main(["--quick", "--results", str(tmp_path)]) == 1
    failure = "HyperMixing, wrong | bfloat16 | failed: too far from float64: gradient 1"
    assert failure in capsys.readouterr().out
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# NVIDIA X\n")
    assert "| HyperMixing, wrong | **1.50 failed** |" in text


def collect(cases, seconds=60.0):
    """The rows of a part."""
    rows = []
    listed = cases if callable(cases) else lambda end: cases
    processes.run_part("part", listed, seconds, rows.append)
    return rows


def fine():
    yield Measure("time", 1.25, "ms")


def test_one_broken_case_leaves_the_others():
    def broken():
        yield Measure("time", 2.0, "ms")
        raise RuntimeError("first line\nsecond line")

    def wrong():
        yield Measure("error", math.nan)
        raise Failed("too far")

    def impossible():
        raise LeftOut("not here")
        yield

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    def dies():
        yield Measure("time", 3.0, "ms")
        os.kill(os.getpid(), signal.SIGKILL)

    measures = broken, wrong, impossible, too_large, dies, fine
    rows = collect([Case(m.__name__, "float32", m) for m in measures])
    assert [(row.case, row.value, row.status) for row in rows] == [
        ("broken", "2", "ok"),
        ("broken", "", "failed: RuntimeError: first line"),
        ("wrong", "nan", "ok"),
        ("wrong", "", "failed: too far"),
        ("impossible", "", "left out: not here"),
        ("too_large", "", "left out: the device's memory is too small"),
        ("dies", "3", "ok"),
        ("dies", "", "failed: its process died"),
        ("fine", "1.25", "ok"),
    ]
    assert rows[-1] == Row("part", "fine", "float32", "time", "1.25", "ms")


def test_a_part_whose_device_is_unusable_goes_on_in_another_process(monkeypatch):
    """What a kernel that reads out of bounds leaves behind."""
    broken_in = []

    def breaks():
        broken_in.append(os.getpid())
        yield from fine()

    monkeypatch.setattr(
        processes, "_device_is_unusable", lambda: os.getpid() in broken_in
    )
    rows = collect([Case("breaks", "", breaks), Case("fine", "", fine)])
    assert [(row.case, row.status) for row in rows] == [
        ("breaks", "ok"),
        ("breaks", "failed: it left the device unusable"),
        ("fine", "ok"),
    ]


def test_a_part_that_cannot_list_its_cases():
    def list_cases(end):
        raise ImportError("no such kernel")

    (row,) = collect(list_cases)
    assert row.status == "failed: ImportError: no such kernel"
    (row,) = collect(lambda end: os._exit(3))
    assert row.status == "failed: its process died"


def test_what_does_not_fit_the_time_is_named(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 3.0)

    def hangs():
        # What a case starts must end with it.
        subprocess.run(["sleep", "600"])
        yield

    start = time.monotonic()
    rows = collect([Case("hangs", "", hangs), Case("late", "", fine)], seconds=0.5)
    assert time.monotonic() - start < 60
    assert [(row.case, row.status) for row in rows] == [
        ("hangs", "failed: it did not end in time and was stopped"),
        ("late", "left out: the time was over"),
    ]


def test_rows_are_in_the_file_at_once(tmp_path):
    file = RowFile(tmp_path / "gpu.csv")
    row = Row("times", "a | b", "float32", "forward", "1.5", "ms")
    file.add(row)
    assert read_rows(tmp_path / "gpu.csv") == [row] == file.rows
    with open(tmp_path / "gpu.csv") as lines:
        header = next(csv.reader(lines))
    assert header == ["part", "case", "dtype", "metric", "value", "unit", "status"]


def test_errors_are_held_against_torch_in_the_same_precision():
    exact = [torch.tensor([1.0, -8.0], dtype=torch.float64)]
    peer, got = [torch.tensor([1.0, -8.5])], [torch.tensor([1.75, -8.0])]
    ((error, allowed, size),) = errors.compare(got, peer, exact)
    assert (error, size) == (0.75, 8.0)
    assert allowed == pytest.approx(1.0 + errors.SLACK)
    measures = list(parity.judge([(error, allowed, size)]))
    assert measures[0] == Measure("error of the output", 0.75 / 8, "of the largest")
    assert measures[1].value == pytest.approx(0.75, rel=1e-4)
    with pytest.raises(ValueError, match=r"\[\(1, 2\)\], expected \[\(2,\)\]"):
        errors.compare([got[0][None]], peer, exact)


@pytest.mark.parametrize("error", [1.5, math.nan, math.inf])
def test_an_error_that_is_not_allowed(error):
    found = []
    with pytest.raises(Failed, match="too far from float64: output, gradient 2"):
        for measure in parity.judge([(error, 1.0, 1.0), (0.1, 1.0, 1.0), (9, 1, 9)]):
            found.append(measure)
    assert found[-1].metric == "error over allowed"
    assert not found[-1].value <= 1


def test_wrong_gradients_are_found():
    """The reference in the kernels' place, right and with a wrong gradient."""
    arguments = (2, 40, 24, 2), torch.float32, torch.device("cpu")
    right = errors.run_mixing

    def run(backend, *arguments, **options):
        backend = "reference" if backend == "triton" else backend
        return right(backend, *arguments, **options)

    def run_wrong(backend, *arguments, **options):
        tensors = run(backend, *arguments, **options)
        if backend == "triton":
            tensors[3] = tensors[3] * (1 + 1e-3)
        return tensors

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "run_mixing", run)
        list(parity.judge(parity._mixing(*arguments)))
        patch.setattr(errors, "run_mixing", run_wrong)
        with pytest.raises(Failed, match="float64: gradient 3$"):
            list(parity.judge(parity._mixing(*arguments)))


def test_every_operator_is_judged_in_every_dtype():
    whole = types.SimpleNamespace(quick=False, device="cuda")
    for settings in (QUICK, whole):
        cases = {}
        for case in parity.list_cases(settings, end=0.0):
            cases.setdefault(case.dtype, []).append(case.name)
        assert set(cases) == {"float32", "bfloat16", "float16"}
        for names in cases.values():
            text = "; ".join(names)
            assert len(set(names)) == len(names)
            for word in ("one frame", "spans", "packed", "chunks", "stream", "GLU"):
                assert word in text
    # Of whole size, one kernel and three take self-mixing, and heads of all widths.
    from hyperconformer.ops.hypermixing.triton_path import fits_one_program

    forms = {
        (fits_one_program(batch, length, heads, width // heads), width // heads)
        for batch, length, width, heads in parity.MIXING_SIZES.values()
    }
    assert {(True, 16), (True, 32), (False, 64), (False, 128), (False, 32)} <= forms


def test_least_operations_are_those_of_torch():
    sizes = 2, 500, 128, 4
    for contender in ("HyperMixing, torch", "torch scaled_dot_product_attention"):
        build = times.CONTENDERS[contender]
        run, inputs, products = build(*sizes, torch.float32, "cpu", QUICK)
        counter = FlopCounterMode(display=False)
        # Others of its kernels are not counted.
        with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
            run()
        # One more row or column of biases in 32.
        assert products <= counter.get_total_flops() <= 1.05 * products
        assert all(tensor.requires_grad for tensor in inputs)


def test_the_page():
    size = "8 x 100 | D=256 H=8"

    def timed(contender, metric, value, unit):
        case = f"{contender} | {size}"
        return Row("times", case, "bfloat16", metric, value, unit)

    ours = "HyperMixing, Triton"
    rows = [
        Row("environment", "", "", "card", "NVIDIA H200"),
        Row("environment", "", "", "triton", "3.6.0"),
        Row("parity", "HyperGLU, long", "float32", "error over allowed", "0.4"),
        Row("parity", "HyperGLU, long", "float16", status="failed: its process died"),
        Row("ceilings", "copy", "float32", "bandwidth", "4000", "GB/s"),
        Row("ceilings", "product", "bfloat16", "products", "800", "TFLOP/s"),
        timed(ours, "forward", "0.02", "ms"),
        timed(ours, "forward, percentile 20", "0.01", "ms"),
        timed(ours, "forward, least bytes", "1000", "GB/s"),
        timed(ours, "forward, products", "8", "TFLOP/s"),
        timed(ours, "forward, peak memory", "12.4", "MiB"),
        timed("attention", "forward", "3", "ms"),
        Row("training", "8M | attention", "bfloat16", "speed", "900", "audio s/s"),
        Row("DDP", "8M", "float32", status="left out: there is 1 device, not 2"),
    ]
    text = page(rows)
    assert text.startswith("# NVIDIA H200\n\n`python -m benchmarks gpu`; triton 3.6.0")
    assert "- parity: HyperGLU, long (float16): its process died" in text
    assert "- DDP: 8M (float32): there is 1 device, not 2" in text
    assert "| HyperGLU, long | 0.40 | **failed** |" in text
    assert "| B x T, D=256 H=8 | 8 x 100 |" in text
    assert "| HyperMixing, Triton | 0.02 (25 %, 1 %, 12 MiB) |" in text
    assert "| attention | 3 (-, -) |" in text
    assert "| 8M, attention | 900 |" in text
    assert "The run has not ended" not in text
    assert "The run has not ended" in page(rows, complete=False)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "corpus/etc").mkdir(parents=True)
    return gpu.Settings("cuda", False, tmp_path / "corpus", tmp_path)


def train_an4(settings, minutes=1):
    """The measures of the recipe."""
    (case,) = an4.list_cases(settings, time.monotonic() + 60 * minutes)
    return list(case.measure())


def test_an4_is_trained_by_its_recipe(settings, monkeypatch):
    def run(command, *, timeout, **options):
        assert command[1:4] == ["-m", "hyperconformer.cli", "train"]
        assert command[4].endswith("recipes/AN4/hparams/hyperconformer.yaml")
        assert f"--data_folder={settings.an4}" in command
        assert "--device=cuda" in command
        assert 50 < timeout <= 60
        (output,) = (c for c in command if c.startswith("--output_folder="))
        folder = pathlib.Path(output.partition("=")[2])
        folder.mkdir()
        rates = {"WER": 3.75, "CER": 1.83}
        results = {"splits": {"test": rates}, "test": "test", "train_s": 600.0}
        (folder / "results.json").write_text(json.dumps(results))
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(an4.subprocess, "run", run)
    assert [measure.value for measure in train_an4(settings)] == [3.75, 1.83, 600.0]


def test_an4_that_does_not_end(settings, monkeypatch):
    def run(command, *, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(an4.subprocess, "run", run)
    with pytest.raises(LeftOut, match="goes on from its last checkpoint"):
        train_an4(settings)
    failed = types.SimpleNamespace(returncode=1)
    monkeypatch.setattr(an4.subprocess, "run", lambda *_, **options: failed)
    with pytest.raises(RuntimeError, match="see .*an4.log"):
        train_an4(settings)


def test_an4_needs_a_folder_and_speechbrain(settings, monkeypatch):
    with pytest.raises(LeftOut, match="no folder was given"):
        train_an4(settings._replace(an4=None))
    monkeypatch.setitem(sys.modules, "speechbrain", None)
    with pytest.raises(LeftOut, match="SpeechBrain is not installed"):
        train_an4(settings)


@pytest.mark.slow  # on one core, the two wait for each other
def test_two_processes_have_the_gradients_of_one():
    """On a CPU, which has two processes but one device."""
    end = time.monotonic() + 300
    arguments = "tiny", "HyperMixing, torch", QUICK, end
    measures = list(ddp.measure_processes(*arguments))
    assert [measure.unit for measure in measures] == ["of the norm", *["audio s/s"] * 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddp, "TOLERANCE", -1.0)
        with pytest.raises(Failed, match="not those of one"):
            list(ddp.measure_processes(*arguments))


@pytest.mark.slow
def test_processes_that_run_out_of_time_are_ended():
    with pytest.raises(LeftOut, match="the time was over"):
        end = time.monotonic() + 8  # torchrun is up, and its processes import torch
        list(ddp.measure_processes("tiny", "HyperMixing, torch", QUICK, end))
    left = [process.cmdline() for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in left if "benchmarks.gpu.ddp" in line]
