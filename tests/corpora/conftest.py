"""Tiny raw corpora, made for each test."""

import numpy as np
import pytest
import soundfile

RATE_HZ = 16000


def write_tone(path, duration_s=0.5, rate_hz=RATE_HZ, channels=1, **options):
    """Writes a sine wave, as loud in every channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    tone = 0.3 * np.sin(2 * np.pi * 440 * time_s)
    soundfile.write(path, np.stack([tone] * channels, axis=1), rate_hz, **options)
    return path


@pytest.fixture
def libri_folder(tmp_path):
    """A LibriSpeech of three splits with three good utterances each."""
    folder = tmp_path / "LibriSpeech"
    speakers = {"train-clean-100": "19", "train-clean-360": "20", "dev-clean": "84"}
    for split, speaker in speakers.items():
        chapter = folder / split / speaker / "7"
        names = [f"{speaker}-7-{number:04d}" for number in range(3)]
        for name in names:
            write_tone(chapter / f"{name}.flac")
        lines = [f"{name} UTTERANCE OF {split.upper()}\n" for name in names]
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(lines))
    return folder


@pytest.fixture
def an4_folder(tmp_path):
    """An AN4 of ten training speakers and two test speakers, two utterances each."""
    folder = tmp_path / "an4"
    (folder / "etc").mkdir(parents=True)
    parts = {
        "train": ("an4_clstk", [f"m{letter}xy" for letter in "abcdefghij"]),
        "test": ("an4test_clstk", ["fxyz", "mxyz"]),
    }
    for part, (collection, speakers) in parts.items():
        fileids, lines = [], []
        for speaker in speakers:
            for number in range(2):
                name = f"an{number}-{speaker}-b"
                write_tone(folder / "wav" / collection / speaker / f"{name}.wav")
                fileids.append(f"{collection}/{speaker}/{name}\n")
                text = "GO STOP" if part == "test" else "<s> GO STOP </s>"
                lines.append(f"{text} ({name})\n")
        (folder / "etc" / f"an4_{part}.fileids").write_text("".join(fileids))
        (folder / "etc" / f"an4_{part}.transcription").write_text("".join(lines))
    return folder


@pytest.fixture
def tone():
    """The function that writes a sine wave into a file."""
    return write_tone
