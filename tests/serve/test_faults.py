"""What clients do wrong harms nobody else, and is named."""

import asyncio
import base64
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import httpx
import numpy as np
import openai
import pytest
from served_speech import recognise, segments, speech, texts
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from hyperconformer.serve import app
from hyperconformer.serve.app import UVICORN
from hyperconformer.serve.limits import Guard, Limits
from hyperconformer.transcribe.streaming import StreamingASR, StreamingModel


def is_well(server, asr, seed=7):
    """A stream is served, and says what it says alone."""
    samples = speech(12000, seed)
    messages = recognise(f"{server.ws}/v1/stream", samples)
    return texts(messages) == segments(asr, samples)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def open_socket(server, request=b""):
    """A bare connection, after some bytes."""
    bare = socket.create_connection(("127.0.0.1", server.port))
    bare.sendall(request)
    return bare


UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(b"0123456789abcdef") + b"\r\n\r\n"
)


def test_a_client_that_is_killed_gives_its_place_back(serve, tiny_streaming):
    server = serve(limits=Limits(streams=1))
    client = connect(f"{server.ws}/v1/stream")
    client.send(speech(9000).tobytes())
    assert json.loads(client.recv())["heard_s"] > 0
    assert server.service.streams.taken == 1
    linger = struct.pack("ii", 1, 0)  # so that the kernel sends a reset
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    client.socket.close()
    wait_for(lambda: server.service.streams.taken == 0)
    assert is_well(server, tiny_streaming)


@pytest.mark.integration
def test_half_a_frame_ends_with_the_idle_limit(serve, tiny_streaming):
    server = serve(limits=Limits(idle_s=0.5))
    bare = open_socket(server, UPGRADE)
    assert b"101 Switching Protocols" in bare.recv(4096)
    bare.sendall(b"\x82\xfe\x10\x00" + bytes(4) + bytes(1000))  # of 4096 bytes
    assert is_well(server, tiny_streaming)
    answer = b""
    with contextlib.suppress(OSError):
        while piece := bare.recv(4096):
            answer += piece
    assert b"nothing came for 0.5 s" in answer
    wait_for(lambda: not server.service.connections)


def test_a_full_server_refuses_and_goes_on(serve, tiny_streaming):
    server = serve(limits=Limits(streams=1))
    url, samples = f"{server.ws}/v1/stream", speech(20000)
    early = connect(url)  # before the place is taken
    with connect(url) as first:
        data = samples.tobytes()
        first.send(data[:20000])
        got = [json.loads(first.recv())]
        with pytest.raises(InvalidStatus) as caught:
            connect(url)
        response = caught.value.response
        assert response.status_code == 503 and response.headers["Retry-After"] == "1"
        assert "it takes 1 streams at once" in response.body.decode()
        early.send(data)
        assert "1 streams at once" in json.loads(early.recv())["error"]["message"]
        with pytest.raises(ConnectionClosedError) as closed:
            early.recv()
        assert closed.value.rcvd.code == 1013
        first.send(data[20000:])
        first.send("end")
        got += [json.loads(message) for message in first]
    assert texts(got) == segments(tiny_streaming, samples)
    wait_for(lambda: server.service.streams.taken == 0)
    page = httpx.get(f"{server.http}/metrics").text
    assert 'hyperconformer_refused_total{code="server_full"}' in page


@pytest.mark.integration
def test_a_thousand_silent_connections_harm_nobody(serve, tiny_streaming, monkeypatch):
    app._allow_connections()
    monkeypatch.setattr(app, "HEAD_S", 3)
    server = serve(limits=Limits(idle_s=5.0))

    async def be_silent():
        url = f"{server.ws}/v1/stream"
        silent = [
            await connect_async(url, ping_interval=None, open_timeout=60)
            for _ in range(200)
        ]
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, is_well, server, tiny_streaming)
        codes = set()
        for client in silent:
            with contextlib.suppress(ConnectionClosedError):
                while True:
                    await client.recv()
            codes.add(client.close_code)
        return codes

    bare = [open_socket(server) for _ in range(800)]
    assert asyncio.run(be_silent()) == {1008}
    for connection in bare:
        connection.settimeout(30)
        assert connection.recv(1) == b""  # closed
        connection.close()
    assert server.service.streams.taken == 0


@pytest.mark.integration
def test_ten_minutes_at_once(serve, tiny_streaming):
    """Others are served in between; more is no message."""
    model = tiny_streaming.model
    model = StreamingModel(model.extractor, model.recognizer, 1280)  # fewer chunks
    asr = StreamingASR(model, tiny_streaming.tokenizer)
    server = serve(streaming=asr)
    url, samples = f"{server.ws}/v1/stream", np.tile(speech(16000 * 60, 1), 10)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        long = pool.submit(recognise, url, samples, 2 * len(samples))
        wait_for(lambda: server.service.streams.taken == 1)
        assert is_well(server, asr)
        assert not long.done()
        with connect(url) as client, pytest.raises(ConnectionClosedError):
            client.send(bytes(UVICORN["ws_max_size"] + 1))
            client.recv()
        assert texts(long.result()) == segments(asr, samples)


def test_only_the_token_opens(serve, tiny_streaming):
    server = serve(guard=Guard("secret", []))
    assert httpx.get(f"{server.http}/health").json()["status"] == "ok"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.get(f"{server.http}/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("realtime", "stream"):
            with pytest.raises(InvalidStatus) as caught:
                connect(f"{server.ws}/v1/{path}", additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert "wrong or missing token" in caught.value.response.body.decode()
    client = openai.OpenAI(
        api_key="secret",
        base_url=f"{server.http}/v1",
        websocket_base_url=f"{server.ws}/v1",
    )
    assert len(list(client.models.list())) == 2
    with client.realtime.connect() as connection:
        assert connection.recv().type == "session.created"
    # As a browser does it.
    names = ["pcm", "openai-insecure-api-key.secret"]
    with connect(f"{server.ws}/v1/stream", subprotocols=names) as client:
        assert client.subprotocol == "pcm"


def test_pages_of_other_origins_are_refused(serve):
    server = serve(guard=Guard(None, ["https://friend.example"]))
    url = f"{server.http}/v1/models"
    for origin, status in (
        ("https://evil.example", 403),
        ("https://friend.example", 200),
        (server.http, 200),
    ):
        answer = httpx.get(url, headers={"Origin": origin})
        assert answer.status_code == status
        if status == 403:
            with pytest.raises(InvalidStatus, match="HTTP 403"):
                connect(f"{server.ws}/v1/stream", origin=origin)
        else:
            connect(f"{server.ws}/v1/stream", origin=origin).close()
    assert answer.headers.get("access-control-allow-origin") is None
    answer = httpx.get(url, headers={"Origin": "https://friend.example"})
    allowed = answer.headers["access-control-allow-origin"]
    assert allowed == "https://friend.example"


def test_an_upload_that_stalls_is_refused(serve, tiny_streaming):
    server = serve(limits=Limits(idle_s=0.5))
    bare = open_socket(
        server,
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n",
    )
    assert b"408" in bare.recv(4096)
    assert is_well(server, tiny_streaming)


def test_utterances_are_finished_before_the_end(serve, tiny_streaming):
    """What SIGTERM begins; see also the next test."""
    server = serve(limits=Limits(finish_s=1.0))
    samples = speech(20000, 5)
    url = f"{server.ws}/v1/stream"
    idle, speaking = connect(url), connect(url)
    speaking.send(samples.tobytes())
    got = [json.loads(speaking.recv())]
    draining = asyncio.run_coroutine_threadsafe(server.service.drain(), server.loop)
    assert httpx.get(f"{server.http}/health").status_code == 503
    with pytest.raises(InvalidStatus, match="HTTP 503"):
        connect(url)
    draining.result(30)
    for client in (idle, speaking):
        with pytest.raises(ConnectionClosedError) as caught:
            while True:
                got.append(json.loads(client.recv()))
        assert caught.value.rcvd.code == 1012
        assert "restarted" in got.pop()["error"]["message"]
    found, expected = texts(got), segments(tiny_streaming, samples)
    # It ends with a pause, or with all that was heard.
    assert found and found == expected[: len(found)]


@pytest.mark.integration
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_ends_the_command_and_loses_nothing(tmp_path, processes):
    """The shipped models, as a user starts them."""
    port = socket.create_server(("127.0.0.1", 0)).getsockname()[1]
    command = [sys.executable, "-m", "hyperconformer.cli", "serve", "--port", str(port)]
    command += ["--processes", str(processes), "--max-finish-s", "5"]
    log = open(tmp_path / "log", "w+")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: _answers(port, process), 240)
        recording = os.path.join(os.path.dirname(__file__), "../data/an4")
        with open(f"{recording}/cen6-fvap-b.wav", "rb") as file:
            samples = np.frombuffer(file.read()[44:], "<i2")
        with connect(f"ws://127.0.0.1:{port}/v1/stream") as client:
            client.send(samples.tobytes())
            got = [json.loads(client.recv())]
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosedError) as caught:
                while True:
                    got.append(json.loads(client.recv(60)))
        assert caught.value.rcvd.code == 1012
        assert "restarted" in got.pop()["error"]["message"]
        assert " ".join(texts(got)).startswith("ONE FIVE TWO TWO SEVEN")
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        log.seek(0)
        print(log.read())


def _answers(port, process):
    assert process.poll() is None
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.get(f"http://127.0.0.1:{port}/health")
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        return answer.status_code == 200 and "hyperconformer_streams" in metrics
    return False
