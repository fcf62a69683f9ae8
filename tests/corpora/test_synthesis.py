"""The synthesiser: a pure function of its arguments."""

import concurrent.futures
import sys

import numpy as np
import pytest

from hyperconformer.core.espeak import _find_voice, list_languages, list_variants
from hyperconformer.corpora.synthetic import synthesis

pytest.importorskip("espeakng_loader")


def test_speech_has_the_right_form():
    samples = synthesis.speak("one two three", voice="en-gb+f3")
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 0.5 < len(samples) / 16000 < 3
    assert 0.05 < np.abs(samples).max() <= 1


def test_other_sample_rates():
    lengths = [len(synthesis.speak("one", sample_rate_hz=hz)) for hz in (8000, 22050)]
    assert lengths[1] / lengths[0] == pytest.approx(22050 / 8000, rel=1e-3)


def test_neither_what_was_said_before_nor_threads_matter():
    """eSpeak NG itself keeps state and seeds its noise with the time of day."""
    voices = ["en-us", "en-gb+f3", "en-029+whisper", "en-us+klatt"] * 3
    alone = {voice: synthesis.speak("seven thirty", voice) for voice in set(voices)}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        again = list(pool.map(lambda v: synthesis.speak("seven thirty", v), voices))
    for voice, samples in zip(voices, again):
        np.testing.assert_array_equal(samples, alone[voice])


def test_the_parameters_matter():
    default = synthesis.speak("set the alarm")
    assert len(synthesis.speak("set the alarm", rate_wpm=120)) > 1.2 * len(default)
    for change in ({"pitch": 80}, {"pitch_range": 0}, {"voice": "en-us+m3"}):
        assert not np.array_equal(synthesis.speak("set the alarm", **change), default)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"voice": "xx"}, "unknown language 'xx'.*en-us"),
        ({"voice": "en-us+nobody"}, "unknown variant 'nobody'.*Annie"),
        ({"rate_wpm": 1000}, "rate_wpm must be from 80 to 450, got 1000"),
        ({"pitch": -1}, "pitch must be from 0 to 100"),
        ({"pitch_range": 101}, "pitch_range must be"),
        ({"text": " "}, "is silent"),
        ({"sample_rate_hz": 0}, "sample_rate_hz must be positive"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthesis.speak(**{"text": "hello", **arguments})


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    for cached in (list_languages, list_variants, _find_voice):
        cached.cache_clear()
    with pytest.raises(ImportError, match=r"espeakng_loader: .*\[synth\]"):
        synthesis.speak("hello", "en-us+extras")
