"""Each stream of a batch says what it says alone, whoever comes and goes beside it."""

import asyncio
import contextlib
import math
import random

import numpy as np
import pytest
import served_speech
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperconformer.serve.batcher import BACKLOG_S, MAX_BATCH, Batcher
from hyperconformer.serve.metrics import Metrics

CHUNK = 2560


def speech(count, seed):
    return served_speech.speech(count, seed).astype(np.float32) / 2**15


def alone(asr, samples):
    return served_speech.segments(asr, samples)


@contextlib.contextmanager
def batching(asr, threads=2):
    batcher = Batcher(asr, Metrics(), threads)
    try:
        yield batcher
    finally:
        batcher.close()


async def collect(live):
    return [partial async for partial in live]


def ended(partials):
    return [partial.text for partial in partials if partial.ended]


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_interleaving_leaves_each_stream_as_it_is_alone(
    tiny_streaming, tiny_looking_ahead, data
):
    """Streams come and go, stall and hurry; some are dropped in the middle."""
    asr = data.draw(st.sampled_from([tiny_streaming, tiny_looking_ahead]))
    lengths = data.draw(st.lists(st.integers(0, 30000), min_size=1, max_size=8))
    speeches = [speech(n, seed) for seed, n in enumerate(lengths)]
    begins = [data.draw(st.integers(0, 5)) for _ in lengths]
    sizes = [data.draw(st.sampled_from([160, 999, 2560, 9000])) for _ in lengths]
    drops = [data.draw(st.sampled_from([None, None, 1, 4])) for _ in lengths]
    order = random.Random(data.draw(st.integers(0, 2**32)))
    threads = data.draw(st.integers(1, 3))

    async def talk():
        found = {}
        lives, fed, step = {}, [0] * len(lengths), 0
        waiting = set(range(len(lengths)))
        while waiting or lives:
            for row in [row for row in waiting if begins[row] <= step]:
                waiting.discard(row)
                lives[row] = batcher.open()
                found[row] = asyncio.ensure_future(collect(lives[row]))
            rows = list(lives)
            order.shuffle(rows)
            for row in rows[: order.randint(0, len(rows))]:
                piece = speeches[row][fed[row] : fed[row] + sizes[row]]
                fed[row] += sizes[row]
                if len(piece) == 0:
                    lives.pop(row).finish()
                elif drops[row] is not None and fed[row] > drops[row] * CHUNK:
                    lives.pop(row).drop()
                else:
                    await lives[row].feed(piece)
            if order.random() < 0.5:
                await asyncio.sleep(0)
            step += 1
        return {row: await task for row, task in found.items()}

    with batching(asr, threads) as batcher:
        found = asyncio.run(talk())
    for row, partials in found.items():
        expected = alone(asr, speeches[row])
        texts = ended(partials)
        dropped = drops[row] is not None and lengths[row] > (drops[row] - 1) * CHUNK
        if dropped:  # what came out before was right
            assert texts == expected[: len(texts)]
        else:
            assert texts == expected


def test_streams_that_are_ready_together_are_one_batch(tiny_streaming, monkeypatch):
    batches, feed = [], tiny_streaming.feed

    def count(streams, samples, last=False):
        batches.append(len(streams))
        return feed(streams, samples, last)

    monkeypatch.setattr(tiny_streaming, "feed", count)

    async def talk(batcher):
        lives = [batcher.open() for _ in range(MAX_BATCH + 5)]
        for live in lives:
            await live.feed(speech(2700, 0))
        for live in lives:
            live.finish()
        return [ended(await collect(live)) for live in lives]

    with batching(tiny_streaming, threads=1) as batcher:
        texts = asyncio.run(talk(batcher))
    # The first one does not wait for the others; no batch is too large.
    assert batches[:3] == [1, MAX_BATCH, MAX_BATCH]
    assert all(text == alone(tiny_streaming, speech(2700, 0)) for text in texts)


def test_nobody_waits_for_anothers_backlog(tiny_streaming):
    """A stream of one chunk is served though another has brought a minute."""

    async def talk(batcher):
        long, short = batcher.open(), batcher.open()
        order = []

        async def follow(name, live):
            async for _ in live:
                order.append(name)

        tasks = [
            asyncio.ensure_future(follow(*pair))
            for pair in (("long", long), ("short", short))
        ]
        feeding = asyncio.ensure_future(long.feed(speech(60 * 16000, 1)))
        await asyncio.sleep(0)
        await short.feed(speech(2700, 2))
        short.finish()
        await tasks[1]
        before = order.index("short")
        assert not feeding.done()  # its client is kept waiting
        await feeding
        assert len(long.pending) < BACKLOG_S * 16000
        long.drop()
        await tasks[0]
        return before

    with batching(tiny_streaming, threads=1) as batcher:
        assert asyncio.run(talk(batcher)) <= 3


def test_a_fault_ends_its_own_stream_only(tiny_streaming, monkeypatch):
    feed = tiny_streaming.feed
    bad = speech(2700, 0)

    def fail(streams, samples, last=False):
        if any(np.array_equal(piece, bad[:2600]) for piece in samples):
            raise ValueError("a fault")
        return feed(streams, samples, last)

    monkeypatch.setattr(tiny_streaming, "feed", fail)

    async def talk(batcher):
        first, second, third = (batcher.open() for _ in range(3))
        for live, seed in ((first, 1), (second, 0), (third, 2)):
            await live.feed(speech(2700, seed))
            live.finish()
        texts = [ended(await collect(live)) for live in (first, third)]
        with pytest.raises(ValueError, match="a fault"):
            await collect(second)
        return texts

    with batching(tiny_streaming, threads=1) as batcher:
        texts = asyncio.run(talk(batcher))
    assert texts == [alone(tiny_streaming, speech(2700, seed)) for seed in (1, 2)]


def test_a_stream_ends_at_its_next_pause(tiny_streaming):
    """As at SIGTERM: at once in silence, else with the segment."""

    async def talk(batcher):
        silent = batcher.open()
        await silent.feed(np.zeros(100, np.float32))
        silent.finish_at_pause()
        await collect(silent)
        speaking, samples = batcher.open(endpoint_s=math.inf), speech(32000, 3)
        task = asyncio.ensure_future(collect(speaking))
        await speaking.feed(samples)
        while not speaking.speaks:
            await asyncio.sleep(0.01)
        speaking.finish_at_pause()
        assert not speaking.finished
        speaking.stream.endpoint_s = 0.04
        while not speaking.finished:
            await speaking.feed(samples)
            await asyncio.sleep(0.01)
        return ended(await task)

    with batching(tiny_streaming) as batcher:
        assert asyncio.run(asyncio.wait_for(talk(batcher), 60))[0]
