"""What a service shares among its connections."""

import copy

from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.lexicon import LexiconSearcher
from hyperconformer.serve.app import Service
from hyperconformer.serve.limits import Limits


def test_as_many_streams_as_the_search_lets_cores_carry(
    tiny_asr, tiny_streaming, tmp_path
):
    searched = copy.copy(tiny_streaming)
    searched.search = LexiconSearcher(train_arpa(["BAD CAB"], tmp_path / "lm.arpa"))
    for streaming, limits, expected in (
        (tiny_streaming, Limits(), 150),
        (searched, Limits(), 30),
        (searched, Limits(streams=4), 4),
        ("this model does not stream", Limits(), 150),
    ):
        service = Service(tiny_asr, streaming, "a", "b", limits, threads=3)
        assert service.streams.count == expected
        service.close()
