"""The plain WebSocket, spoken to by the package ``websockets``."""

import json

import numpy as np
import pytest
import soundfile
from served_speech import recognise, segments, speech, texts
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from hyperconformer.audio import resample
from hyperconformer.serve.limits import Limits
from hyperconformer.serve.pcm import Decoder


@pytest.mark.parametrize("size", [1601, 40000])
def test_the_words_are_those_of_the_stream_alone(serve, tiny_streaming, size):
    samples = speech(40000)
    messages = recognise(f"{serve().ws}/v1/stream", samples, size)
    assert texts(messages) == segments(tiny_streaming, samples)
    heard = [message["heard_s"] for message in messages]
    assert heard == sorted(heard) and heard[-1] == pytest.approx(2.52)
    for message in messages:
        for word in message["words"]:
            assert set(word) == {"text", "start_s", "end_s", "confidence"}


def test_another_rate_is_resampled(serve, tiny_streaming):
    samples = speech(60000)
    floats = resample(samples.astype(np.float32) / 32768, 24000, 16000)
    messages = recognise(f"{serve().ws}/v1/stream?sample_rate=24000", samples)
    assert texts(messages) == segments(tiny_streaming, floats)


@pytest.mark.parametrize(
    "query,message",
    [
        ("sample_rate=7", "from 1000 to 384000 Hz, got 7"),
        ("sample_rate=0", "from 1000 to 384000 Hz, got 0"),
        ("sample_rate=abc", "sample_rate: Input should be a valid integer"),
        ("samplerate=8000", "unsupported: samplerate; sample_rate is the only"),
    ],
)
def test_parameters_that_cannot_be_are_refused(serve, query, message):
    with pytest.raises(InvalidStatus) as caught:
        connect(f"{serve().ws}/v1/stream?{query}")
    assert caught.value.response.status_code == 400
    body = json.loads(caught.value.response.body)
    assert message in body["error"]["message"]


def fails(url, *messages):
    """What the server says of an error, how it closes, and what it said before."""
    with connect(url) as socket:
        for message in messages:
            socket.send(message)
        got = []
        with pytest.raises(ConnectionClosedError) as caught:
            while True:
                got.append(json.loads(socket.recv()))
    return got[-1]["error"], caught.value.rcvd.code, got[:-1]


def test_garbage_is_named_and_what_was_said_comes_first(serve, tiny_streaming):
    server = serve(limits=Limits(idle_s=1.0))
    url, samples = f"{server.ws}/v1/stream", speech(20000)
    expected = segments(tiny_streaming, samples)
    data = samples.tobytes()
    for messages, code, text in (
        ((data, "stop"), 1003, "expected 16-bit PCM"),
        ((data + b"x", "end"), 1003, "end within a 16-bit sample"),
        ((data,), 1008, "nothing came for 1 s"),
    ):
        error, closed, before = fails(url, *messages)
        assert text in error["message"] and closed == code
        assert texts(before) == expected


def test_a_stream_of_nothing_ends_too(serve, tiny_streaming):
    messages = recognise(f"{serve().ws}/v1/stream", speech(0))
    assert texts(messages) == segments(tiny_streaming, speech(0))


@pytest.mark.parametrize("kind,subtype", [("pcmu", "ULAW"), ("pcma", "ALAW")])
def test_g711_is_that_of_libsndfile(kind, subtype, tmp_path):
    samples = speech(1000)
    raw = {"format": "RAW", "subtype": subtype, "samplerate": 8000}
    soundfile.write(tmp_path / "a.raw", samples, **raw)
    expected, _ = soundfile.read(tmp_path / "a.raw", channels=1, dtype="float32", **raw)
    decoder = Decoder(kind, 8000, 8000)
    data = (tmp_path / "a.raw").read_bytes()
    got = [decoder.push(data[:333]), decoder.push(data[333:]), decoder.finish()]
    assert np.array_equal(np.concatenate(got), expected)
    assert np.abs(expected - samples / 32768).max() < 0.02
