"""Installation; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "hyperconformer/__init__.py").read_text()
).group(1)

setup(
    name="hyperconformer",
    version=VERSION,
    description=(
        "Conformer speech recognition with linear-time token mixing, for SpeechBrain"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    # The trained models stand at the top of the repository, and travel in the wheel
    # as data of the package: hyperconformer/model_folder.py looks for both.
    packages=[
        *find_packages(include=["hyperconformer", "hyperconformer.*"]),
        "hyperconformer.pretrained",
    ],
    package_dir={"hyperconformer.pretrained": "pretrained"},
    package_data={
        "": ["*.cpp", "*.h"],
        "hyperconformer.pretrained": [
            f"*/{name}"
            for name in (
                "hyperparams.yaml",
                "model.safetensors",
                "tokenizer.model",
                "lm.arpa",
                "README.md",
            )
        ],
    },
    install_requires=[
        "torch>=2.4",
        "torchaudio>=2.4",
        "speechbrain>=1.1,<1.2",
        "hyperpyyaml>=1.2",
        "ruamel.yaml>=0.17",
        "sentencepiece>=0.2",
        "safetensors>=0.4",
        "soundfile>=0.12",
        "numpy>=1.22",
        "scipy>=1.8",
        "tqdm>=4.60",
        "matplotlib>=3.5",
        "filelock>=3.12",
        # Synthesises the embedded corpus; GPL-3.0-or-later, imported when used.
        "espeakng-loader>=0.2",
    ],
    extras_require={
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "ruff>=0.6",
            "optuna>=4",
        ],
        # Decoding with large n-gram language models; compiled when installed.
        "lm": ["kenlm>=0.2", "pygtrie>=2.5"],
        # Random and TPE search in ablations.
        "search": ["optuna>=4"],
        # The published packages that two mixers are compared with.
        "parity": ["linear-attention-transformer", "mixture-of-attention"],
    },
    entry_points={"console_scripts": ["hyperconformer=hyperconformer.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
