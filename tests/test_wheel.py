"""What is installed without the repository works."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest
from setuptools.dist import Distribution

ROOT = pathlib.Path(__file__).resolve().parents[1]
SOURCES = ("hyperconformer", "hparams", "recipes", "pretrained")
TINY = [
    "--corpus_options={train_utterances: 12, valid_utterances: 4, test_utterances: 4}",
    "--d_model=16",
    "--nhead=2",
    "--d_ffn=32",
    "--num_encoder_layers=1",
    "--noprogressbar",
]


def test_recipes_ablations_and_the_web_page_are_data_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    distributions = []
    monkeypatch.setattr(
        "setuptools.setup",
        lambda **options: distributions.append(Distribution(options)),
    )
    exec((ROOT / "setup.py").read_text(), {"__file__": str(ROOT / "setup.py")})
    (distribution,) = distributions
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    installed = {
        pathlib.Path(source, name): pathlib.Path(target, name)
        for _, source, target, names in build.data_files
        for name in names
    }
    wanted = [
        path.relative_to(ROOT)
        for folder in ("hparams", "recipes")
        for path in ROOT.glob(f"{folder}/**/*.yaml")
    ]
    assert len(wanted) > 20
    for path in wanted:  # beside each other as here: one is the base of another
        assert installed[path].relative_to(build.build_lib) == "hyperconformer" / path
    page = pathlib.Path("hyperconformer/page")
    for path in (page / "static/index.html", page / "runtime/package-lock.json"):
        assert installed[path].relative_to(build.build_lib) == path


@pytest.fixture(scope="module", params=["pure", "kernels"])
def installed(request, tmp_path_factory):
    """An empty folder, and the command there, installed from a wheel."""
    has_kernels = request.param == "kernels"
    if has_kernels and (shutil.which("c++") is None or sys.platform != "linux"):
        pytest.skip("no C++ compiler, or another system than Linux")
    folder = tmp_path_factory.mktemp("wheel")
    source, venv, home = (folder / name for name in ("source", "venv", "empty"))
    home.mkdir()
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)

    building = {**os.environ, "HYPERCONFORMER_KERNELS": str(int(has_kernels))}
    # Where the wheel is used, nothing can be compiled, and nothing is kept.
    using = {**os.environ, "CXX": "/no/compiler", "XDG_CACHE_HOME": str(folder)}

    def run(*command, cwd=home, env=using):
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(*pip, *wheel, source, env=building)
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin" / "python"
    (file,) = folder.glob("*.whl")
    assert ("py3-none-linux" if has_kernels else "py3-none-any") in file.name
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", file)
    # What the package needs is not installed again. An editable installation is not
    # seen that way.
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = pathlib.Path(run(python, "-c", where).strip())
    others = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site / "others.pth").write_text("\n".join(others))
    found = run(python, "-c", "import hyperconformer; print(hyperconformer.__file__)")
    assert site in pathlib.Path(found.strip()).parents
    command = venv / "bin" / "hyperconformer"
    return home, lambda *words: run(command, *words), has_kernels


@pytest.mark.slow
def test_a_wheel_trains_ablates_and_transcribes(installed):
    folder, hyperconformer, has_kernels = installed
    info = hyperconformer("info")
    assert f"c++ kernels: {'yes' if has_kernels else 'no'}" in info
    speech = ROOT / "tests/data/an4/cen6-fvap-b.wav"
    assert hyperconformer("transcribe", speech) == "ONE FIVE TWO TWO SEVEN\n"
    limits = ("--number_of_epochs=1", "--max_updates=2")
    trained = hyperconformer("train", "hyperconformer", *TINY, *limits)
    assert "model: results/hyperconformer/model" in trained
    model = ("--model", "results/hyperconformer")
    assert hyperconformer("transcribe", speech, *model).endswith("\n")
    assert "librispeech/small" in hyperconformer("train", "--list")
    plan = hyperconformer("ablate", "tied", "--dry-run", *TINY)
    assert "2 runs to do, of 400 updates each" in plan
    study = "base: hyperconformer\naxes: {lr: [0.01]}\nbudget: {updates: 2}\n"
    (folder / "study.yaml").write_text(study)
    assert "1 of 1 runs done, 0 failed" in hyperconformer("ablate", "study.yaml", *TINY)
