"""Audio for the servers of tests, and what is expected of it."""

import json

import numpy as np
from websockets.sync.client import connect


def speech(count, seed=0):
    """(N,) int16 samples that the tiny model takes for words."""
    noise = np.random.default_rng(seed).normal(size=count)
    loud = 0.1 * noise * (1 + np.sin(np.arange(count) / 4000))
    return (32767 * loud.clip(-1, 1)).astype("<i2")


def segments(asr, samples, endpoint_s=None, search=None):
    """What a stream by itself says: the text of each segment."""
    stream = asr.open(endpoint_s, search)
    partials = [*stream.feed(samples), *stream.close()]
    return [partial.text for partial in partials if partial.ended]


def recognise(url, samples, size=1600, end="end"):
    """The messages of a server about samples."""
    data = samples.tobytes()
    # A ping would be answered after samples that are waited with.
    with connect(url, ping_interval=None) as socket:
        for begin in range(0, len(data), size):
            socket.send(data[begin : begin + size])
        socket.send(end)
        return [json.loads(message) for message in socket]


def texts(messages):
    """The text of each segment, put together of new words and the rest."""
    found, words = [], []
    for message in messages:
        words += [word["text"] for word in message["words"]]
        if message["ended"]:
            assert message["rest"] == ""
            found.append(" ".join(words))
            words = []
    return found
