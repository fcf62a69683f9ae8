"""The load generator of benchmarks/serve_load.py."""

import asyncio

import pytest
from served_speech import segments, speech

from benchmarks.serve_load import Load
from hyperconformer.serve.limits import Limits


@pytest.mark.integration
def test_every_chunk_has_a_delay_and_every_stream_its_words(serve, tiny_streaming):
    server = serve(limits=Limits(streams=3))
    voices = [speech(16000, seed) for seed in (1, 2)]
    load = Load(f"{server.ws}/v1/stream", tiny_streaming, voices)
    asyncio.run(load.run(5))
    assert load.outcomes["served"] == 3
    # Refused at the door, or at the first samples where two come in together.
    refused = load.outcomes["refused 503"] + load.outcomes["refused server_full"]
    assert refused == 2
    expected = [segments(tiny_streaming, samples) for samples in voices]
    said = [(voice, texts) for voice, texts in load.said if texts]
    assert len(said) == 3
    assert all(texts == expected[voice] for voice, texts in said)
    # Chunks of 2560 samples, the first of which needs 40 more: the last is a part.
    assert len(load.delays_ms) == 3 * 6 and min(load.delays_ms) > 0
