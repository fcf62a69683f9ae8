"""What Prometheus reads."""

import json
import re

import httpx
from served_speech import recognise, speech
from websockets.sync.client import connect


def value(server, name):
    page = httpx.get(f"{server.http}/metrics").text
    return float(re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)[1])


def test_streams_and_their_audio_are_counted(serve):
    server = serve()
    url, samples = f"{server.ws}/v1/stream", speech(8000)
    recognise(url, samples)
    audio_s = value(server, 'hyperconformer_audio_seconds_total{endpoint="streams"}')
    assert audio_s == 0.5
    chunks = value(server, "hyperconformer_chunk_delay_seconds_count")
    assert chunks == 4  # three full ones of 2560 samples and the rest
    assert value(server, "hyperconformer_batch_streams_count") == 4
    assert value(server, "hyperconformer_streams") == 0
    with connect(url) as client:
        client.send(samples.tobytes())
        json.loads(client.recv())
        assert value(server, "hyperconformer_streams") == 1
