"""AN4 with synthetic voices: its augmentation, and what it is measured with."""

import importlib.util
import pathlib
import random

import numpy as np
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from hyperconformer.config import read_config

RECIPE = pathlib.Path(__file__).resolve().parents[2] / "recipes/AN4"
RATE_HZ = 16000


@pytest.fixture(scope="module")
def other_speakers():
    """The script as a module."""
    path = RECIPE / "other_speakers.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def share_above(hz, wav):
    """Of a signal's energy, what lies above a frequency."""
    energy = torch.fft.rfft(wav).abs().square()
    return (energy[round(hz * len(wav) / RATE_HZ) :].sum() / energy.sum()).item()


@pytest.mark.parametrize("probability, expected", [(1.0, 30), (0.0, 0)])
def test_every_batch_passes_every_augmentation(tmp_path, probability, expected):
    text = read_config(
        RECIPE / "hparams/hyperconformer_synthetic.yaml",
        {
            "data_folder": str(tmp_path),
            "output_folder": str(tmp_path),
            "telephone_probability": probability,
            "phone_ctc": None,
        },
    )
    augment = load_hyperpyyaml(text)["wav_augment"]
    wavs = 0.1 * torch.randn(2, RATE_HZ)
    heard = [augment(wavs, torch.ones(2))[0] for _ in range(30)]
    assert len({wav.shape[1] for wav in heard}) > 1  # speeds
    narrow = sum(share_above(4500, wav[0]) < 1e-3 for wav in heard)
    assert narrow == expected


def test_noise_is_added_to_every_batch(tmp_path):
    options = {"telephone_probability": 0.0, "speed_percent": [100], "phone_ctc": None}
    folders = {"data_folder": str(tmp_path), "output_folder": str(tmp_path)}
    text = read_config(
        RECIPE / "hparams/hyperconformer_synthetic.yaml", {**options, **folders}
    )
    augment = load_hyperpyyaml(text)["wav_augment"]
    tone = 0.1 * torch.sin(torch.arange(RATE_HZ) * 0.3).expand(2, -1)
    for _ in range(20):
        heard = augment(tone, torch.ones(2))[0]
        # The tone comes out softer, by as much as the noise is loud.
        scale = (heard * tone).sum(1, True) / tone.square().sum(1, True)
        noise = heard - scale * tone
        snr_db = 10 * torch.log10(
            (scale * tone).square().sum(1) / noise.square().sum(1)
        )
        assert (snr_db > 14.9).all() and (snr_db < 45.1).all()


def test_strings_are_spliced_of_recordings(other_speakers, tmp_path):
    drawn = other_speakers.strings("AB")
    assert drawn == other_speakers.strings("AB") and len(drawn) == 100
    assert {len(words) for words in drawn} == {3, 4, 5, 6, 7}
    for name, level in (("A", 0.5), ("B", -0.25)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(80, level), 8000)
    samples, rate_hz = other_speakers.splice(
        ["A", "B"], lambda word: tmp_path / f"{word}.wav", random.Random(0)
    )
    assert rate_hz == 8000 and (samples[:80] == 0.5).all()
    assert (samples == -0.25).sum() == 80 and not samples[-100:].any()


def test_the_test_set_goes_through_the_telephone(other_speakers, tmp_path):
    wav = 0.1 * torch.randn(RATE_HZ).numpy()
    soundfile.write(tmp_path / "a.wav", wav, RATE_HZ)
    row = {"ID": "b", "spk_id": "s", "wav": str(tmp_path / "a.wav"), "wrd": "GO"}
    (utterance,) = other_speakers.make_telephone(tmp_path, [row])
    assert (utterance.id, utterance.speaker, utterance.text) == ("b", "s", "GO")
    heard, rate_hz = soundfile.read(utterance.audio)
    assert rate_hz == RATE_HZ and len(heard) == len(wav)
    assert share_above(4500, torch.tensor(wav)) > 0.3
    assert share_above(4500, torch.tensor(heard)) < 1e-3


def test_what_is_not_installed_is_left_out(other_speakers, tmp_path, monkeypatch):
    monkeypatch.setattr(other_speakers, "PROMPTS", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert other_speakers.make_prompts(tmp_path, "prompts", "AB", None) is None
    assert other_speakers.make_flite(tmp_path) is None
