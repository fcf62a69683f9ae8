"""The Realtime API, spoken to by OpenAI's own package."""

import base64
import contextlib

import numpy as np
import openai
import pytest
from served_speech import segments, speech

from hyperconformer.audio import resample
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.serve.limits import Limits

TRANSCRIPTION = "conversation.item.input_audio_transcription"


@pytest.fixture
def client(serve):
    server = serve()
    yield openai.OpenAI(
        api_key="none",
        base_url=f"{server.http}/v1",
        websocket_base_url=f"{server.ws}/v1",
        max_retries=0,
    )


@contextlib.contextmanager
def session(client, **audio_input):
    """A connection with a transcription session, after the update of its settings."""
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert connection.recv().type == "session.created"
        update(connection, **audio_input)
        event = connection.recv()
        assert event.type == "session.updated", event
        connection.effective = event.session
        yield connection


def update(connection, **audio_input):
    connection.session.update(
        session={"type": "transcription", "audio": {"input": audio_input}}
    )


def append(connection, samples, size=4800):
    data = samples.tobytes()
    for begin in range(0, len(data), size):
        piece = base64.b64encode(data[begin : begin + size]).decode()
        connection.input_audio_buffer.append(audio=piece)


def until(connection, kind, count=1):
    """Events up to the last of a kind."""
    events = []
    while sum(event.type == kind for event in events) < count:
        events.append(connection.recv())
        assert events[-1].type != "error", events[-1]
    return events


def completed(events):
    return [e.transcript for e in events if e.type == f"{TRANSCRIPTION}.completed"]


PCM16 = {"type": "audio/pcm", "rate": 16000}


def test_utterances_that_the_client_commits(client, tiny_streaming):
    speeches = [speech(20000, seed) for seed in (1, 2)]
    with session(client, format=PCM16, turn_detection=None) as connection:
        for samples in speeches:
            append(connection, samples)
            connection.input_audio_buffer.commit()
        events = until(connection, f"{TRANSCRIPTION}.completed", 2)
    expected = [segments(tiny_streaming, s, float("inf"))[0] for s in speeches]
    assert completed(events) == expected
    kinds = [event.type for event in events]
    assert "input_audio_buffer.speech_started" not in kinds
    commits = [e for e in events if e.type == "input_audio_buffer.committed"]
    assert commits[1].previous_item_id == commits[0].item_id
    for commit, text in zip(commits, expected):
        own = [e for e in events if getattr(e, "item_id", None) == commit.item_id]
        deltas = [e.delta for e in own if e.type == f"{TRANSCRIPTION}.delta"]
        assert len(deltas) > 1 and "".join(deltas) == text
        assert own[-1].usage.seconds == pytest.approx(1.25, abs=0.05)
        added = [e for e in events if e.type == "conversation.item.added"]
        assert commit.item_id in [e.item.id for e in added]


def test_silence_ends_utterances(client, tiny_streaming):
    samples = speech(40000, 3)
    vad = {"type": "server_vad", "silence_duration_ms": 40}
    with session(client, format=PCM16, turn_detection=vad) as connection:
        append(connection, samples)
        connection.input_audio_buffer.commit()
        expected = segments(tiny_streaming, samples, 0.04)
        events = until(connection, f"{TRANSCRIPTION}.completed", len(expected))
    assert len(expected) > 2 and completed(events) == expected
    starts = [e for e in events if e.type == "input_audio_buffer.speech_started"]
    stops = [e for e in events if e.type == "input_audio_buffer.speech_stopped"]
    times = [
        (start.audio_start_ms, stop.audio_end_ms) for start, stop in zip(starts, stops)
    ]
    assert times == sorted(times) and all(begin < end for begin, end in times)
    assert [start.item_id for start in starts] == [stop.item_id for stop in stops]


def test_what_is_cleared_is_forgotten(client, tiny_streaming):
    samples = speech(20000, 1)
    with session(client, format=PCM16, turn_detection=None) as connection:
        append(connection, speech(30000, 9))
        connection.input_audio_buffer.clear()
        until(connection, "input_audio_buffer.cleared")
        append(connection, samples)
        connection.input_audio_buffer.commit()
        events = until(connection, f"{TRANSCRIPTION}.completed")
    assert completed(events) == segments(tiny_streaming, samples, float("inf"))


def test_the_protocols_own_rate_is_resampled(client, tiny_streaming):
    samples = speech(30000, 4)
    with session(client, turn_detection=None) as connection:
        assert connection.effective.audio.input.format.rate == 24000
        append(connection, samples, 4801)
        connection.input_audio_buffer.commit()
        events = until(connection, f"{TRANSCRIPTION}.completed")
    floats = resample(samples.astype(np.float32) / 32768, 24000, 16000)
    assert completed(events) == segments(tiny_streaming, floats, float("inf"))


def test_hot_words_of_a_session(client, tiny_streaming):
    samples = speech(20000, 1)
    hot = CTCSearcher(hotwords=["dad", "BE"])
    texts = [segments(tiny_streaming, samples, float("inf"), s) for s in (None, hot)]
    found = []
    for words in ({}, {"prompt": "dad", "keywords": ["BE"]}):
        with session(
            client, format=PCM16, turn_detection=None, transcription=words
        ) as connection:
            append(connection, samples)
            connection.input_audio_buffer.commit()
            found.append(completed(until(connection, f"{TRANSCRIPTION}.completed")))
    assert found == texts and texts[0] != texts[1]


def test_only_what_is_given_is_updated(client):
    with session(client, format=PCM16) as connection:
        given = connection.effective.audio.input
        assert given.turn_detection.silence_duration_ms == 200
        assert given.transcription.model == "tiny-live"
        update(connection, turn_detection={"type": "server_vad", "threshold": 0.5})
        given = connection.recv().session.audio.input
        assert given.format.rate == 16000
        assert given.turn_detection.to_dict() == {
            "type": "server_vad",
            "silence_duration_ms": 200.0,
        }
        update(connection, turn_detection=None)
        assert connection.recv().session.audio.input.turn_detection is None


@pytest.mark.parametrize(
    "audio_input,message",
    [
        ({"turn_detection": {"type": "semantic_vad"}}, "turn_detection.type: Input"),
        ({"format": {"type": "audio/pcm", "rate": 3}}, "from 1000 to 384000 Hz"),
        ({"format": {"type": "audio/pcmu", "rate": 16000}}, "audio/pcmu has 8000 Hz"),
        ({"noise_reduction": {"type": "near_field"}}, "noise_reduction: Input"),
        ({"transcription": {"model": "whisper-1"}}, "no model 'whisper-1' here"),
        ({"transcription": {"prompt": "dad, ZOO"}}, "the hot word 'ZOO'"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_settings_without_effect_are_refused(client, audio_input, message):
    with client.realtime.connect() as connection:
        connection.recv()
        update(connection, **audio_input)
        event = connection.recv()
        assert event.type == "error" and message in event.error.message
        update(connection)
        assert connection.recv().type == "session.updated"


def test_mistakes_are_named_and_the_session_goes_on(client, tiny_streaming):
    samples = speech(20000, 1)
    with session(client, format=PCM16, turn_detection=None) as connection:
        append(connection, samples[:9000])
        for mistake, message in (
            ({"type": "response.create", "event_id": "e1"}, "unknown event"),
            ({"type": "input_audio_buffer.append", "audio": "!!"}, "no base64"),
            ({"type": "input_audio_buffer.append"}, "needs `audio`"),
        ):
            connection.send(mistake)
            event = connection.recv()
            assert event.type == "error" and message in event.error.message
            assert event.error.event_id == mistake.get("event_id")
        connection._connection.send("{")
        assert "expected a JSON object" in connection.recv().error.message
        append(connection, samples[9000:])
        connection.input_audio_buffer.commit()
        events = until(connection, f"{TRANSCRIPTION}.completed")
        connection.input_audio_buffer.commit()
        event = connection.recv()
        assert event.error.code == "input_audio_buffer_commit_empty"
    assert completed(events) == segments(tiny_streaming, samples, float("inf"))


def test_a_model_that_does_not_stream_says_so(serve):
    server = serve(streaming="streaming needs normalization: global")
    client = openai.OpenAI(api_key="none", websocket_base_url=f"{server.ws}/v1")
    with pytest.raises(Exception, match="HTTP 501"):
        client.realtime.connect().enter()
    assert server.service.limits == Limits()
