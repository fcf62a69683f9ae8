"""AN4 with synthetic voices: what is said, by whom, and that nothing is lost."""

import pathlib
import random

import numpy as np
import pytest
import soundfile

from hyperconformer.corpora import an4_synthetic, prepare
from hyperconformer.corpora.manifest import read_manifest

# The words of AN4's pronunciation dictionary.
AN4_WORDS = set(
    "A AND APOSTROPHE APRIL AREA AUGUST B C CODE D DECEMBER E EIGHT EIGHTEEN "
    "EIGHTEENTH EIGHTH EIGHTY ELEVEN ELEVENTH ENTER ERASE F FEBRUARY FIFTEEN FIFTEENTH "
    "FIFTH FIFTY FIRST FIVE FORTY FOUR FOURTEEN FOURTH G GO H HALF HELP HUNDRED I J "
    "JANUARY JULY JUNE K L M MARCH MAY N NINE NINETEEN NINETY NINTH NO NOVEMBER O "
    "OCTOBER OF OH ONE P Q R REPEAT RUBOUT S SECOND SEPTEMBER SEVEN SEVENTEEN SEVENTH "
    "SEVENTY SIX SIXTEEN SIXTEENTH SIXTH SIXTY START STOP T TEN THIRD THIRTEEN "
    "THIRTIETH THIRTY THOUSAND THREE TWELFTH TWELVE TWENTIETH TWENTY TWO U V W X Y YES "
    "Z ZERO".split()
)


def test_sentences_keep_to_an4s_words():
    lines = an4_synthetic.plan(pathlib.Path("data"), 4000, ["P G H"])
    said = {word for line in lines for word in line.text.split()}
    assert said <= AN4_WORDS
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") <= said
    assert sum(line.text == "P G H" for line in lines) >= 2000
    assert len({line.voice for line in lines}) == 160


def test_train_is_an4_and_the_synthetic_part(an4_folder, tmp_path):
    options = {"synthetic_folder": tmp_path / "said", "synthetic_utterances": 3}
    manifests = prepare("an4_synthetic", an4_folder, tmp_path / "out", **options)
    rows = {split: read_manifest(path) for split, path in manifests.items()}
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 18 + 3,
        "valid": 2,
        "test": 4,
    }
    added = rows["train"][18:]
    assert added[0]["wrd"] == "GO STOP"  # a sentence of the training set
    files = sorted((tmp_path / "said").rglob("*.flac"))
    assert [row["wav"] for row in added] == sorted(
        (str(file) for file in files), key=lambda name: name[-10:]
    )
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    # What is missing comes back as it was; the rest is left alone.
    files[1].unlink()
    prepare("an4_synthetic", an4_folder, tmp_path / "out", **options)
    assert files[1].read_bytes() == before[files[1]][0]
    assert files[0].stat().st_mtime_ns == before[files[0]][1]

    # Other options replace it.
    other = {**options, "synthetic_utterances": 2, "seed": 7}
    prepare("an4_synthetic", an4_folder, tmp_path / "out", **other)
    now = sorted((tmp_path / "said").rglob("*.flac"))
    assert len(now) == 2 and not {f.read_bytes() for f in now} & {
        content for content, _ in before.values()
    }


def test_none_is_refused_and_so_is_a_folder_of_something_else(an4_folder, tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prepare("an4_synthetic", an4_folder, tmp_path / "out", synthetic_utterances=0)
    lines = an4_synthetic.plan(tmp_path / "said", 1, ["GO"])
    lines[0].path.parent.mkdir(parents=True)
    lines[0].path.write_bytes(b"someone's own")
    with pytest.raises(ValueError, match="not made here"):
        prepare(
            "an4_synthetic",
            an4_folder,
            tmp_path / "out",
            synthetic_folder=tmp_path / "said",
            synthetic_utterances=1,
        )
    assert lines[0].path.read_bytes() == b"someone's own"


@pytest.mark.parametrize("seed", range(5))
def test_a_room_keeps_the_direct_sound_and_decays(seed):
    click = np.zeros(1000)
    click[0] = 1.0
    heard = an4_synthetic.reverberate(click, random.Random(seed))
    room = heard[1:]
    assert heard[0] == pytest.approx(1.0)
    direct_to_room_db = -10 * np.log10(np.sum(room**2))
    assert 0 <= direct_to_room_db <= 20
    # 60 dB down at the reverberation time, which ends the response.
    reverberation = len(heard) - len(click)
    assert 0.1 * 16000 <= reverberation <= 0.5 * 16000
    tenth = reverberation // 10
    first, last = room[:tenth], room[9 * tenth : 10 * tenth]
    lost_db = 10 * np.log10(np.mean(first**2) / np.mean(last**2))
    assert lost_db == pytest.approx(54, abs=3)


def test_letters_are_said_the_american_way(tmp_path, monkeypatch):
    """Not as the article, a British Z and a word that the synthesiser cannot read."""
    told = []

    def speak(text, *args, **options):
        told.append(text)
        return np.ones(1600, np.float32)

    monkeypatch.setattr(an4_synthetic, "speak", speak)
    for seed in range(9):
        (line,) = an4_synthetic.plan(tmp_path, 1, ["RUBOUT A Z TEN"])
        an4_synthetic.write_audio(line, seed)
    assert set(told) == {"rub out eh zee ten", "rub out, eh, zee, ten"}
    samples, rate_hz = soundfile.read(line.path)
    assert rate_hz == 16000 and len(samples) > 1600 + 0.1 * rate_hz
