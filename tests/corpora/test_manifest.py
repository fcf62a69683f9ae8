"""What bad input gets, what is reused, and what a kill leaves behind."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import soundfile

from hyperconformer.corpora import manifest
from hyperconformer.corpora.manifest import Checks, Utterance, prepare_split

RATE_HZ = 16000


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def write_nothing(path):
    path.write_bytes(b"")


def write_junk(path):
    path.write_bytes(b"this is no audio" * 100)


def write_no_samples(path):
    soundfile.write(path, np.zeros(0), RATE_HZ)


def write_one_sample(path):
    soundfile.write(path, np.full(1, 0.5), RATE_HZ)


def write_silence(path):
    soundfile.write(path, np.zeros(RATE_HZ), RATE_HZ)


def write_nan(path):
    samples = np.full(RATE_HZ, 0.1)
    samples[-1] = np.nan
    soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")


def write_infinite(path):
    soundfile.write(path, np.full(RATE_HZ, np.inf), RATE_HZ, subtype="FLOAT")


BAD_WAVS = {
    "empty file": write_nothing,
    "unreadable audio": write_junk,
    "no samples": write_no_samples,
    "truncated audio": truncate,
    "silence": write_silence,
    "samples not finite": write_nan,
    "too short": write_one_sample,
}


def prepare(utterances, folder, **checks):
    return prepare_split(
        "toy", "train", utterances, folder, folder / "out", Checks(**checks)
    )


def read_skipped(folder):
    with open(folder / "out" / "skipped_train.csv", newline="") as file:
        return {row["ID"]: row for row in csv.DictReader(file)}


@pytest.fixture
def utterances(tmp_path, tone):
    """Four good utterances."""
    names = [f"u{number}" for number in range(4)]
    return [
        Utterance(name, "s1", str(tone(tmp_path / f"{name}.wav")), "GO ON")
        for name in names
    ]


def path_of(utterance, folder):
    return folder / f"{utterance.id}.wav"


def test_columns_and_values(utterances, tmp_path):
    rows = manifest.read_manifest(prepare(utterances, tmp_path))
    assert rows[0] == {
        "ID": "u0",
        "duration": "0.5",
        "wav": str(tmp_path / "u0.wav"),
        "spk_id": "s1",
        "wrd": "GO ON",
    }
    assert [row["ID"] for row in rows] == ["u0", "u1", "u2", "u3"]
    assert not (tmp_path / "out" / "skipped_train.csv").exists()


def test_speechbrain_reads_it(utterances, tmp_path):
    dataset = pytest.importorskip("speechbrain.dataio.dataset")
    utterances[0] = Utterance(
        "u0", "s1", utterances[0].audio, 'IT\'S "QUOTED", SAYS HE'
    )
    data = dataset.DynamicItemDataset.from_csv(str(prepare(utterances, tmp_path)))
    data.set_output_keys(["id", "duration", "wav", "spk_id", "wrd"])
    assert len(data) == 4
    assert data[0] == {
        "id": "u0",
        "duration": 0.5,
        "wav": str(tmp_path / "u0.wav"),
        "spk_id": "s1",
        "wrd": 'IT\'S "QUOTED", SAYS HE',
    }


@pytest.mark.parametrize("reason", BAD_WAVS)
def test_bad_audio_is_named_counted_and_skipped(reason, utterances, tmp_path, caplog):
    BAD_WAVS[reason](path_of(utterances[1], tmp_path))
    with caplog.at_level(logging.WARNING):
        rows = manifest.read_manifest(prepare(utterances, tmp_path))
    assert [row["ID"] for row in rows] == ["u0", "u2", "u3"]
    skipped = read_skipped(tmp_path)
    assert {name: row["reason"] for name, row in skipped.items()} == {"u1": reason}
    assert skipped["u1"]["wav"] == utterances[1].audio
    counts = json.loads((tmp_path / "out" / "train.json").read_text())["counts"]
    assert counts["skipped"] == {reason: 1}
    assert f"skipped 1 utterances (1 {reason})" in caplog.text
    assert f"u1 ({reason})" in caplog.text


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_truncation_is_found_wherever_it_is(suffix, share, tone, tmp_path):
    path = tone(tmp_path / f"a.{suffix}", duration_s=2)
    assert not manifest.inspect_audio(path).fault
    truncate(path, share)
    assert manifest.inspect_audio(path).fault in ("truncated audio", "unreadable audio")


@hypothesis.given(data=st.data())
@hypothesis.settings(deadline=None, max_examples=200)
def test_damage_of_any_kind_is_reported_not_raised(data, damaged):
    """Overwrites bytes anywhere, the headers included."""
    path, originals = damaged
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 4))):
        # Headers are where damage has the most ways to mislead a reader.
        last = data.draw(st.sampled_from([60, len(content) - 4]))
        place = data.draw(st.integers(0, last))
        content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path.write_bytes(content)
    for full_check in (False, True):
        found = manifest.inspect_audio(str(path), full_check)
        assert found.fault or (found.frames > 0 and found.sample_rate_hz > 0)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A file to damage, and sound contents for it."""
    folder = tmp_path_factory.mktemp("damaged")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)
    originals = []
    for name, subtype in (
        ("a.wav", "PCM_16"),
        ("b.wav", "FLOAT"),
        ("c.flac", "PCM_16"),
    ):
        soundfile.write(folder / name, noise, RATE_HZ, subtype=subtype)
        originals.append((folder / name).read_bytes())
    return folder / "damaged", originals


def test_infinite_samples(tmp_path):
    write_infinite(tmp_path / "a.wav")
    assert manifest.inspect_audio(tmp_path / "a.wav").fault == "samples not finite"


def test_a_late_sound_is_no_silence(tmp_path):
    samples = np.zeros(5 * RATE_HZ)
    samples[-1] = 0.5
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    assert not manifest.inspect_audio(tmp_path / "a.wav").fault


def test_full_check_finds_damage_in_the_middle(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "a.flac"
    soundfile.write(path, generator.uniform(-0.5, 0.5, 10 * RATE_HZ), RATE_HZ)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20000] = bytes(20000)
    path.write_bytes(content)
    assert not manifest.inspect_audio(path).fault
    assert manifest.inspect_audio(path, full_check=True).fault


def test_bad_pairs_are_named(utterances, tmp_path):
    good = utterances[0]
    bad = {
        "no-audio": (
            Utterance("no-audio", "s", None, "GO"),
            "transcript without audio",
        ),
        "gone": (
            Utterance("gone", "s", str(tmp_path / "gone.wav"), "GO"),
            "transcript without audio",
        ),
        "no-text": (
            Utterance("no-text", "s", good.audio, None),
            "audio without transcript",
        ),
        "blank": (Utterance("blank", "s", good.audio, " "), "empty transcript"),
        "u0": (Utterance("u0", "s", good.audio, "GO"), "repeated ID"),
        "price": (Utterance("price", "s", good.audio, "$FIVE"), "dollar sign"),
        "odd": (Utterance("odd", "s", good.audio, "GO", "torn page"), "torn page"),
    }
    listed = utterances + [utterance for utterance, _ in bad.values()]
    rows = manifest.read_manifest(prepare(listed, tmp_path))
    assert len(rows) == 4
    reasons = {name: row["reason"] for name, row in read_skipped(tmp_path).items()}
    assert reasons == {name: reason for name, (_, reason) in bad.items()}


def test_durations_are_bounded(utterances, tmp_path, tone):
    tone(path_of(utterances[1], tmp_path), duration_s=0.2)
    tone(path_of(utterances[2], tmp_path), duration_s=2.0)
    path = prepare(utterances, tmp_path, min_duration_s=0.3, max_duration_s=1.0)
    assert [row["ID"] for row in manifest.read_manifest(path)] == ["u0", "u3"]
    skipped = read_skipped(tmp_path)
    assert skipped["u1"]["reason"] == "too short"
    assert skipped["u1"]["detail"] == "0.2000 s, at least 0.3 s"
    assert skipped["u2"]["reason"] == "too long"


def test_other_rates_and_stereo_are_kept_and_counted(
    utterances, tmp_path, tone, caplog
):
    tone(path_of(utterances[1], tmp_path), rate_hz=8000)
    tone(path_of(utterances[2], tmp_path), channels=2)
    with caplog.at_level(logging.WARNING):
        rows = manifest.read_manifest(prepare(utterances, tmp_path))
    assert [row["duration"] for row in rows] == ["0.5"] * 4
    counts = json.loads((tmp_path / "out" / "train.json").read_text())["counts"]
    assert counts["other_sample_rate"] == counts["several_channels"] == 1
    assert "1 utterances are not at 16000 Hz" in caplog.text
    assert "1 utterances have several channels" in caplog.text


def test_an_empty_split_is_an_error(utterances, tmp_path):
    with pytest.raises(ValueError, match="'train' of toy .* empty: no utterance was"):
        prepare([], tmp_path)
    with pytest.raises(ValueError, match="all 4 utterances were skipped: 4 too short"):
        prepare(utterances, tmp_path, min_duration_s=9)
    assert len(read_skipped(tmp_path)) == 4


@pytest.mark.parametrize(
    "options, name",
    [
        ({"min_duration_s": -1}, "min_duration_s"),
        ({"min_duration_s": 2, "max_duration_s": 1}, "max_duration_s"),
        ({"workers": 0}, "workers"),
    ],
)
def test_checks_are_checked(options, name):
    with pytest.raises(ValueError, match=name):
        Checks(**options)


def test_the_number_of_workers_changes_nothing(utterances, tmp_path):
    one = prepare(utterances, tmp_path, workers=1).read_bytes()
    (tmp_path / "out" / "train.csv").unlink()
    assert prepare(utterances, tmp_path, workers=5).read_bytes() == one


@pytest.fixture
def inspected(monkeypatch):
    """The names of the files that are inspected from now on."""
    names = []
    inspect_audio = manifest.inspect_audio

    def spy(path, full_check):
        names.append(os.path.basename(path))
        return inspect_audio(path, full_check)

    monkeypatch.setattr(manifest, "inspect_audio", spy)
    return names


def test_a_manifest_is_reused(utterances, tmp_path, inspected):
    first = prepare(utterances, tmp_path).stat().st_mtime_ns
    assert sorted(inspected) == ["u0.wav", "u1.wav", "u2.wav", "u3.wav"]
    inspected.clear()
    assert prepare(utterances, tmp_path).stat().st_mtime_ns == first
    assert not inspected


def test_what_changed_is_read_again(utterances, tmp_path, tone, inspected):
    prepare(utterances, tmp_path)
    inspected.clear()
    tone(path_of(utterances[2], tmp_path), duration_s=0.7)
    rows = manifest.read_manifest(prepare(utterances, tmp_path))
    assert rows[2]["duration"] == "0.7"
    assert inspected == ["u2.wav"]


def test_changed_texts_and_options_need_no_new_scan(utterances, tmp_path, inspected):
    prepare(utterances, tmp_path)
    inspected.clear()
    utterances[0] = Utterance("u0", "s1", utterances[0].audio, "STOP")
    assert manifest.read_manifest(prepare(utterances, tmp_path))[0]["wrd"] == "STOP"
    with pytest.raises(ValueError, match="4 too long"):
        prepare(utterances, tmp_path, max_duration_s=0.2)
    assert not inspected
    prepare(utterances, tmp_path, full_check=True)
    assert len(inspected) == 4


def test_an_altered_manifest_is_made_again(utterances, tmp_path):
    path = prepare(utterances, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert prepare(utterances, tmp_path).read_bytes() == content
    path.with_suffix(".json").write_text("{")
    assert prepare(utterances, tmp_path).read_bytes() == content


def test_an_old_list_of_skipped_goes_away(utterances, tmp_path, tone):
    write_silence(path_of(utterances[1], tmp_path))
    prepare(utterances, tmp_path)
    assert read_skipped(tmp_path)
    tone(path_of(utterances[1], tmp_path))
    prepare(utterances, tmp_path)
    assert not (tmp_path / "out" / "skipped_train.csv").exists()


def test_an_interrupted_scan_goes_on(utterances, tmp_path, monkeypatch, inspected):
    spy = manifest.inspect_audio

    def stop_at_the_third(path, full_check):
        if path.endswith("u2.wav"):
            raise KeyboardInterrupt
        return spy(path, full_check)

    monkeypatch.setattr(manifest, "inspect_audio", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(utterances, tmp_path, workers=1)
    assert not (tmp_path / "out" / "train.csv").exists()
    inspected.clear()
    monkeypatch.setattr(manifest, "inspect_audio", spy)
    # What a kill may leave: a line that is cut off.
    with open(tmp_path / "out" / "train.scan.jsonl", "a") as cache:
        cache.write('["False (')
    prepare(utterances, tmp_path)
    assert inspected[0] == "u2.wav" and set(inspected) <= {"u2.wav", "u3.wav"}
    inspected.clear()
    (tmp_path / "out" / "train.csv").unlink()
    prepare(utterances, tmp_path)
    assert not inspected


SLOW_SCAN = """
import pathlib, sys, time
from hyperconformer.corpora import manifest
folder = pathlib.Path(sys.argv[1])
inspect_audio = manifest.inspect_audio
def slowly(path, full_check):
    time.sleep(0.05)
    return inspect_audio(path, full_check)
manifest.inspect_audio = slowly
utterances = [
    manifest.Utterance(f"u{n}", "s1", str(folder / f"u{n}.wav"), "GO ON")
    for n in range(60)
]
checks = manifest.Checks(workers=1)
manifest.prepare_split("toy", "train", utterances, folder, folder / "out", checks)
"""


def test_a_killed_scan_goes_on(tmp_path, tone, inspected):
    utterances = [
        Utterance(f"u{n}", "s1", str(tone(tmp_path / f"u{n}.wav", 0.2)), "GO ON")
        for n in range(60)
    ]
    process = subprocess.Popen([sys.executable, "-c", SLOW_SCAN, str(tmp_path)])
    cache = tmp_path / "out" / "train.scan.jsonl"
    wait_until(lambda: cache.exists() and cache.read_text().count("\n") > 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "train.csv").exists()
    rows = manifest.read_manifest(prepare(utterances, tmp_path))
    assert len(rows) == 60
    assert 0 < len(inspected) <= 56


def wait_until(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_merging_refuses_what_occurs_twice(utterances, tmp_path):
    path = prepare(utterances, tmp_path)
    with pytest.raises(ValueError, match="4 utterances occur more than once.*u0"):
        manifest.merge_manifests("all", [path, path], tmp_path)


def test_write_atomically_leaves_nothing_beside(tmp_path):
    path = tmp_path / "new" / "a.txt"
    manifest.write_atomically(path, b"one")
    manifest.write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.txt"]


def test_threads_keep_the_order_and_pass_errors_on():
    numbers = list(range(2500))
    assert list(manifest.map_in_threads(lambda n: n * 2, numbers, 4)) == [
        n * 2 for n in numbers
    ]
    with pytest.raises(ZeroDivisionError):
        list(manifest.map_in_threads(lambda n: 1 // n, [1, 0, 1], 2))
