"""Live streams that have a chunk ready at the same time are advanced as one batch.

Each stream keeps its own state; a batch stacks the states of those that are ready. A
stream brings at most one chunk to a batch, however fast its samples come, and then
goes to the end of the queue: nobody waits for another's backlog.
"""

import asyncio
import collections
import concurrent.futures
import functools
import logging

import numpy as np
import torch

# Larger batches make each stream no cheaper, and all of them later.
MAX_BATCH = 32
# How much of a stream may wait before its client has to.
BACKLOG_S = 10.0

logger = logging.getLogger(__name__)


class Batcher:
    """Advances live streams on a pool of threads.

    Arguments
    ---------
    asr : hyperconformer.transcribe.streaming.StreamingASR
        What recognises.
    metrics : hyperconformer.serve.metrics.Metrics
        Where delays and batch sizes are counted.
    threads : int
        Batches at work at once, each on one core.
    """

    def __init__(self, asr, metrics, threads):
        self.asr, self.metrics, self.idle = asr, metrics, threads
        self.ready = collections.deque()
        self.pool = concurrent.futures.ThreadPoolExecutor(
            threads, "batch", torch.set_num_threads, (1,)
        )

    def open(self, endpoint_s=None, search=None):
        """Begin a stream.

        Arguments
        ---------
        endpoint_s, search
            As for :meth:`hyperconformer.transcribe.streaming.StreamingASR.open`.

        Returns
        -------
        LiveStream
        """
        return LiveStream(self, self.asr.open(endpoint_s, search))

    def close(self):
        """End the threads; batches at work are finished."""
        self.pool.shutdown(cancel_futures=True)

    def enqueue(self, live):
        """Let a stream that has a chunk, or its end, wait for a batch."""
        if not live.waits and live.is_ready:
            live.waits, live.since = True, asyncio.get_running_loop().time()
            self.ready.append(live)
            self._start()

    def _start(self):
        loop = asyncio.get_running_loop()
        while self.idle > 0 and self.ready:
            count = min(len(self.ready), MAX_BATCH)
            lives = [self.ready.popleft() for _ in range(count)]
            lives = [live for live in lives if not live.dropped]
            if lives:
                self.idle -= 1
                pieces = [live.next_piece() for live in lives]
                work = loop.run_in_executor(self.pool, self._feed, lives, pieces)
                work.add_done_callback(functools.partial(self._deliver, lives, pieces))

    def _deliver(self, lives, pieces, work):
        if not work.cancelled():
            self.metrics.batch.observe(len(lives))
            samples = sum(len(piece) for piece, _ in pieces)
            audio_s = samples / self.asr.model.sample_rate_hz
            self.metrics.audio_s.labels("streams").inc(audio_s)
            now = asyncio.get_running_loop().time()
            for live, (_, last), result in zip(lives, pieces, work.result()):
                self.metrics.delay_s.observe(now - live.since)
                live.waits = False
                live.deliver(result, last)
                self.enqueue(live)
            self.idle += 1
            self._start()

    def _feed(self, lives, pieces):
        """Of each stream the partials, or the error that ends it."""
        streams = [live.stream for live in lives]
        states = [stream.state for stream in streams]
        samples, lasts = zip(*pieces)
        try:
            return self.asr.feed(streams, samples, lasts)
        except Exception as error:
            logger.exception("a batch of %d streams failed", len(lives))
            if len(lives) == 1:
                return [error]
        # One stream's fault must not end the others. Those that have moved cannot be
        # fed the same samples again.
        return [
            self._feed([live], [piece])[0]
            if live.stream.state is state
            else RuntimeError("the stream failed with another one of its batch")
            for live, piece, state in zip(lives, pieces, states)
        ]


class LiveStream:
    """A stream whose samples come from a client; :meth:`Batcher.open` makes it.

    ``async for partial in live`` gives what is recognised, until the stream has ended.

    Arguments
    ---------
    batcher : Batcher
        What advances it.
    stream : hyperconformer.transcribe.streaming.Stream
        At its beginning.
    """

    def __init__(self, batcher, stream):
        self.batcher, self.stream = batcher, stream
        self.rate_hz = batcher.asr.model.sample_rate_hz
        self.pending = np.zeros(0, np.float32)
        self.samples = 0
        self.finished = self.dropped = self.waits = False
        self.ends_at_pause = self.speaks = False
        self.since = 0.0
        self.results = asyncio.Queue()
        self.has_room = asyncio.Event()
        self.has_room.set()

    @property
    def duration_s(self):
        """How much has been fed."""
        return self.samples / self.rate_hz

    @property
    def is_ready(self):
        """Whether there is something to compute."""
        return not self.dropped and (self.finished or len(self.pending) >= self._lack)

    @property
    def _lack(self):
        return self.batcher.asr.model.missing(self.stream.state)[0]

    async def feed(self, samples):
        """Take the next samples; waits while too many have not been recognised yet.

        After :meth:`finish` nothing is taken.

        Arguments
        ---------
        samples : numpy.ndarray
            (N,) float32 at the model's rate.
        """
        if self.finished or self.dropped:
            return
        self.pending = np.concatenate([self.pending, samples])
        self.samples += len(samples)
        self._check_room()
        self.batcher.enqueue(self)
        await self.has_room.wait()

    def finish(self):
        """No sample follows: recognise what is left, and end."""
        if not self.finished:
            self.finished = True
            self.batcher.enqueue(self)

    def finish_at_pause(self):
        """End with the segment that is being spoken, at once if there is none."""
        self.ends_at_pause = True
        if not self.speaks and len(self.pending) < self._lack:
            self.finish()

    def drop(self):
        """End now; nobody wants what is left."""
        if not self.dropped:
            self.dropped = True
            self.pending = self.pending[:0]
            self.has_room.set()
            self.results.put_nowait(None)

    def next_piece(self):
        """Samples up to the next chunk's end, and whether the stream ends before it."""
        lack = self._lack
        piece, self.pending = self.pending[:lack], self.pending[lack:]
        self._check_room()
        return piece, self.finished and len(piece) < lack

    def deliver(self, result, last):
        """Take what a batch gave: partials, or an error, which ends the stream."""
        if self.dropped:
            return
        if isinstance(result, Exception):
            self.results.put_nowait(result)
            self.drop()
            return
        for partial in result:
            self.results.put_nowait(partial)
            self.speaks = not partial.ended and partial.text != ""
        if last:
            self.drop()
        has_ended = any(partial.ended for partial in result)
        if not last and self.ends_at_pause and (has_ended or not self.speaks):
            self.finish()

    def _check_room(self):
        if len(self.pending) < BACKLOG_S * self.rate_hz:
            self.has_room.set()
        else:
            self.has_room.clear()

    async def __aiter__(self):
        while (result := await self.results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result
