"""AN4 with synthetic voices: what is said, by whom, and that nothing is lost."""

import functools
import pathlib
import random
import re

import numpy as np
import pytest
import soundfile

from hyperconformer.corpora import prepare
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.corpora.synthetic import an4_synthetic

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
    lines = an4_synthetic.plan(pathlib.Path("data"), 4000, ["P G H"], [])
    said = {word for line in lines for word in line.text.split()}
    assert said <= AN4_WORDS
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") <= said
    assert sum(line.text == "P G H" for line in lines) >= 2000
    assert len({line.voice for line in lines}) == 160


def test_nobody_says_what_is_to_be_tested_with():
    plan = functools.partial(an4_synthetic.plan, pathlib.Path("data"), 400, ["GO"])
    before = [line.text for line in plan([])]
    unheard = ["YES", *before[1:40:2]]
    after = [line.text for line in plan(unheard)]
    assert "YES" in before and not set(after) & set(unheard)
    # The others say what they would have said.
    assert [text for text in before if text not in unheard] == [
        text for text, old in zip(after, before) if old not in unheard
    ]


@pytest.fixture
def talking_folder(an4_folder):
    """An AN4 in which everyone says something else: the speaker's name, spelled."""
    for part in ("train", "test"):
        file = an4_folder / f"etc/an4_{part}.transcription"
        file.write_text(
            re.sub(
                r"GO STOP(.*-(m|f)(.)(..)-b)",
                lambda match: " ".join(match[3].upper()) + match[1],
                file.read_text(),
            )
        )
    return an4_folder


def test_train_is_an4_and_the_synthetic_part(talking_folder, tmp_path, monkeypatch):
    asked = []
    plan = an4_synthetic.plan
    monkeypatch.setattr(
        an4_synthetic, "plan", lambda *args: asked.append(args) or plan(*args)
    )

    def prepared(**more):
        options = {"synthetic_folder": tmp_path / "said", "synthetic_utterances": 3}
        manifests = prepare(
            "an4_synthetic", talking_folder, tmp_path / "out", **{**options, **more}
        )
        return {split: read_manifest(path) for split, path in manifests.items()}

    rows = prepared()
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 18 + 3,
        "valid": 2,
        "test": 4,
    }
    # The sentences of training are repeated, those of others forbidden: E and X.
    _, _, known, unheard, _ = asked[-1]
    assert known == [row["wrd"] for row in rows["train"][:18]]
    assert set(known) == set("ABCDFGHIJ") and unheard == ["E", "X"]
    files = {row["wav"]: row["wrd"] for row in rows["train"][18:]}
    before = {file: pathlib.Path(file).read_bytes() for file in files}

    # What is missing comes back as it was; the rest is left alone.
    gone, *left = (pathlib.Path(file) for file in files)
    times = [file.stat().st_mtime_ns for file in left]
    gone.unlink()
    prepared()
    assert gone.read_bytes() == before[str(gone)]
    assert [file.stat().st_mtime_ns for file in left] == times

    # Another choice stands beside it; a last run may say what all speakers say.
    everyone = prepared(hold_out=False)
    assert set(asked[-1][2]) == set("ABCDEFGHIJ") and asked[-1][3] == ["X"]
    assert not files.keys() & {row["wav"] for row in everyone["train"]}
    assert all(pathlib.Path(file).read_bytes() == before[file] for file in files)


def test_none_is_refused(an4_folder, tmp_path):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prepare("an4_synthetic", an4_folder, tmp_path / "out", synthetic_utterances=0)


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
        (line,) = an4_synthetic.plan(tmp_path, 1, ["RUBOUT A Z TEN"], [])
        an4_synthetic.write_audio(line, seed)
    assert set(told) == {"rub out eh zee ten", "rub out, eh, zee, ten"}
    samples, rate_hz = soundfile.read(line.path)
    assert rate_hz == 16000 and len(samples) > 1600 + 0.1 * rate_hz
