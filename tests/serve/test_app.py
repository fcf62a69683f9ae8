"""What a service shares among its connections."""

import copy

import pytest

from hyperconformer.core.masks import ChunkRule
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.serve.app import Service, Settings, load_service
from hyperconformer.serve.limits import Limits


def test_as_many_streams_as_the_search_lets_cores_carry(
    tiny_asr, tiny_streaming, tmp_path
):
    searched = copy.copy(tiny_streaming)
    searched.search = LexiconSearcher(train_arpa(["BAD CAB"], tmp_path / "lm.arpa"))
    for streaming, limits, expected in (
        (tiny_streaming, Limits(), 120),
        (searched, Limits(), 15),
        (searched, Limits(streams=4), 4),
        ("this model does not stream", Limits(), 120),
    ):
        service = Service(tiny_asr, streaming, "a", "b", limits, threads=3)
        assert service.streams.count == expected
        service.close()


@pytest.mark.parametrize(
    "given, rule",
    [
        ({}, (14, None, 2)),
        ({"chunk_ms": 640}, (16, None, 0)),
        ({"chunk_ms": 240, "left_context_ms": 480, "right_context_ms": 80}, (6, 2, 2)),
    ],
)
def test_streams_have_the_chunks_that_were_asked_for(given, rule):
    model = "hyperconformer-an4-streaming"
    service = load_service(Settings(model=model, **given))
    assert service.streaming.model.chunk == ChunkRule(*rule)
    service.close()


def test_streams_that_were_asked_for_and_cannot_be_are_an_error():
    """Not a server without streams."""
    for given, message in (
        ({"chunk_ms": 50}, "a chunk must last a multiple of 40 ms, got 50"),
        ({"right_context_ms": 30}, "a right context must last a multiple of 40 ms"),
        ({"endpoint_s": -1.0}, "endpoint_s must be finite and > 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            load_service(Settings(model="hyperconformer-an4-streaming", **given))
    with pytest.raises(ValueError, match="streaming needs normalization"):
        load_service(Settings(model="hyperconformer-an4", chunk_ms=640))
    service = load_service(Settings(model="hyperconformer-an4"))
    assert isinstance(service.streaming, str)
    service.close()
