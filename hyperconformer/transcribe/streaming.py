"""From a stream of samples to words, at constant cost and memory.

:class:`StreamingModel` computes, and holds nothing that changes; all that it remembers
of a stream stands in a :class:`StreamState`. What comes out equals what the offline
model says of the whole utterance under the same chunk rule. :class:`StreamingASR` makes
words of it:

>>> from hyperconformer import StreamingASR                      # doctest: +SKIP
>>> asr = StreamingASR.from_hparams("results/an4")               # doctest: +SKIP
>>> stream = asr.open()                                          # doctest: +SKIP
>>> for samples in microphone:                                   # doctest: +SKIP
...     for partial in stream.feed(samples):
...         print(partial.text)
>>> stream.close()[-1].text                                      # doctest: +SKIP
"""

import hashlib
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from sentencepiece import SentencePieceProcessor

from hyperconformer.audio import as_samples, check_peak, read_audio
from hyperconformer.core.state import StreamState, prefixed, within
from hyperconformer.core.stream_lengths import stream_lengths
from hyperconformer.core.words import Hypothesis, Word
from hyperconformer.hub.folder import DEFAULT_STREAMING_MODEL, load_model
from hyperconformer.model.chunks import chunk_config, chunk_rule
from hyperconformer.model.features import (
    FeatureExtractor,
    frame_ms,
    look_ahead_ms,
    samples_after_centre,
)
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.alignment import spell_words
from hyperconformer.search.base import Search, Searcher
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.search.ngram import ngram_search
from hyperconformer.search.transducer import TransducerSearcher

# A chunk is recognised at once, and its memory is set aside before.
MAX_CHUNK_MS = 600_000


class StreamingModel:
    """Extractor, front end, encoder and its head, chunk by chunk.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Samples to features, with ``normalization: global`` or ``running_level`` and
        ``top_db: null``.
    recognizer : hyperconformer.model.recognizer.Recognizer
        With a causal front end and a mixer that streams.
    chunk_ms : float, optional
        Length of a chunk, a multiple of the encoder's frame (40 ms).
    left_context_ms : float, optional
        What a chunk sees before it, at least; None = all, where the mixer can.
    right_context_ms : float, optional
        What a chunk sees after it, a multiple of the frame. It is computed again with
        the next chunk. Lengths that are left open are those of
        :func:`hyperconformer.core.stream_lengths.stream_lengths`.

    Attributes
    ----------
    chunk : hyperconformer.core.masks.ChunkRule
        The rule in frames.
    latency_ms : float
        The longest that a sound waits for its chunk, the chunk's right context and the
        look-ahead of the features; computing comes on top.

    Raises
    ------
    ValueError
        If a part cannot stream, or a length does not fit.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        recognizer: Recognizer,
        chunk_ms: float | None = None,
        left_context_ms: float | None = None,
        right_context_ms: float | None = None,
    ):
        chunk_ms, right_context_ms = stream_lengths(chunk_ms, right_context_ms)
        extractor.check_streamable()
        if chunk_ms + right_context_ms > MAX_CHUNK_MS:
            raise ValueError(
                f"a chunk and its right context must last at most {MAX_CHUNK_MS} ms, "
                f"got {chunk_ms:g} and {right_context_ms:g} ms"
            )
        self.extractor, self.recognizer = extractor.eval(), recognizer.eval()
        self.frame_ms = frame_ms(extractor, recognizer.frontend)
        self.chunk = chunk_rule(
            chunk_config(chunk_ms, left_context_ms, self.frame_ms, right_context_ms)
        )
        stft = extractor.features.compute_STFT
        self.sample_rate_hz, self.hop = stft.sample_rate, stft.hop_length
        self.chunk_features = self.chunk.chunk_frames * recognizer.frontend.stride
        self.window_features = self.chunk.window_frames * recognizer.frontend.stride
        self.before, right = stft.n_fft // 2, samples_after_centre(stft)
        self.unheard = self.before - right
        self.capacity = (self.window_features - 1) * self.hop + self.before + right
        self.latency_ms = chunk_ms + right_context_ms + look_ahead_ms(extractor)
        mean = extractor.mean
        assert isinstance(mean, torch.Tensor)
        self.device = mean.device
        self.model_id = self._identity()
        self.init_state(1)  # A part that cannot stream says so now.

    def _identity(self):
        """A digest of the weights and of all that shapes a state."""
        shape = self.chunk, self.sample_rate_hz, self.extractor.normalization
        digest = hashlib.sha256(repr(shape).encode())
        for module in (self.extractor, self.recognizer):
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def init_state(self, batch_size: int) -> StreamState:
        """The state before the first sample of ``batch_size`` streams.

        Arguments
        ---------
        batch_size : int
            Number of streams, at least 1.

        Returns
        -------
        StreamState

        Raises
        ------
        ValueError
            If the number is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        like: dict[str, Any] = {
            "device": self.device,
            "dtype": self.extractor.mean.dtype,
        }
        counters: dict[str, Any] = {"dtype": torch.int64, "device": self.device}
        tensors = {
            # The samples from the next chunk's first window on, and how many they are.
            "samples": torch.zeros(batch_size, self.capacity, **like),
            "filled": torch.full((batch_size,), self.before, **counters),
            "samples_seen": torch.zeros(batch_size, **counters),
            "closed": torch.zeros(batch_size, dtype=torch.bool, device=self.device),
            **prefixed("extractor", self.extractor.init_state(batch_size)),
            **prefixed(
                "model",
                self.recognizer.init_state(batch_size, chunk=self.chunk, **like),
            ),
        }
        return StreamState(self.model_id, tensors)

    def reset(self, state: StreamState, rows: list[int]) -> StreamState:
        """The batch with the streams ``rows`` as they were before their first sample.

        Arguments
        ---------
        state : StreamState
            The batch.
        rows : list of int
            Which of its streams.

        Returns
        -------
        StreamState
        """
        self.check_state(state)
        return state.replaced(rows, self.init_state(len(rows)))

    def forget(self, state: StreamState) -> StreamState:
        """The batch with what front end and encoder remember as before a first frame.

        Samples that wait for their chunk stay, and the level of what was heard.
        """
        fresh = self.init_state(state.batch_size).tensors
        kept = {k: v for k, v in state.tensors.items() if not k.startswith("model.")}
        return StreamState(self.model_id, {**fresh, **kept})

    def missing(self, state: StreamState) -> list[int]:
        """How many samples each stream lacks until its next chunk can be recognised.

        Arguments
        ---------
        state : StreamState
            The batch.

        Returns
        -------
        list of int
        """
        missing: list[int] = (self.capacity - state.tensors["filled"]).tolist()
        return missing

    def check_state(self, state: StreamState) -> None:
        """Refuse the state of another model.

        Raises
        ------
        ValueError
            If the state was made by a model of other weights or with another rule.
        """
        if state.model_id != self.model_id:
            raise ValueError(
                "the state belongs to a model of other weights or another chunk rule: "
                f"{state.model_id[:12]}, here {self.model_id[:12]}"
            )

    @torch.inference_mode()
    def feed(
        self,
        state: StreamState,
        samples: Sequence[torch.Tensor],
        last: bool | Sequence[bool] = False,
        *,
        chunkwise: bool = False,
    ) -> tuple[list[torch.Tensor], StreamState]:
        """Take the next samples of each stream, and recognise the chunks they fill.

        Arguments
        ---------
        state : StreamState
            From :meth:`init_state` or the last call; not changed, so that after an
            error the streams without fault can go on from it.
        samples : list of torch.Tensor
            Of each stream (N,) floating samples with full scale = 1, any number, none
            included.
        last : bool or list of bool
            Whether (of each stream) these are the last ones: it is closed then.
        chunkwise : bool
            Whether an end takes one chunk only. A stream of which more waits stays
            open: see ``closed`` of the state, and call again without samples.

        Returns
        -------
        frames : list of torch.Tensor
            Of each stream (T, V) log-probabilities of the new frames, maybe none, or
            (T, D) encoder frames, see :meth:`Recognizer.step`.
        state : StreamState
            The state after these samples.

        Raises
        ------
        ValueError
            If the state belongs to another model, a stream is closed or its samples
            are no finite numbers; the message names the streams.
        """
        self.check_state(state)
        last = [last] * state.batch_size if isinstance(last, bool) else list(last)
        samples = self.check_samples(state, samples, last)
        outputs: list[list[torch.Tensor]] = [[] for _ in samples]
        own = dict(state.tensors)
        for name in ("samples", "filled", "samples_seen", "closed"):
            own[name] = own[name].clone()
        state = StreamState(self.model_id, own)
        taken = [0] * len(samples)
        while True:
            filled = own["filled"].tolist()
            for row, new in enumerate(samples):
                count = min(self.capacity - filled[row], len(new) - taken[row])
                if count > 0:
                    piece = new[taken[row] : taken[row] + count]
                    own["samples"][row, filled[row] : filled[row] + count] = piece
                    filled[row] += count
                    taken[row] += count
                    own["samples_seen"][row] += count
            own["filled"] = torch.tensor(filled, device=self.device)
            ready = [row for row, n in enumerate(filled) if n == self.capacity]
            if not ready:
                break
            features = torch.full((len(ready),), self.window_features)
            state = self._run(state, ready, features.to(self.device), outputs)
            own = state.tensors
        ending = [row for row, end in enumerate(last) if end]
        state, ended = self._close(state, ending, outputs, chunkwise)
        state.tensors["closed"][ended] = True
        head = self.recognizer.ctc_head
        encoded = self.recognizer.steps_to_encoded
        width = head.in_features if encoded else head.out_features
        empty = torch.zeros(0, width, device=self.device)
        return [torch.cat([empty, *frames]) for frames in outputs], state

    @torch.inference_mode()
    def ctc_log_probs(self, frames: torch.Tensor) -> torch.Tensor:
        """The CTC head's log-probabilities of frames of one stream.

        Arguments
        ---------
        frames : torch.Tensor
            (T, V) or (T, D), from :meth:`feed`.

        Returns
        -------
        torch.Tensor
            (T, V), on the CPU, where the searches run.
        """
        if self.recognizer.steps_to_encoded:
            frames = self.recognizer.ctc_log_probs(frames)
        return frames.cpu()

    def check_samples(
        self,
        state: StreamState,
        samples: Sequence[torch.Tensor],
        last: Sequence[bool],
    ) -> list[torch.Tensor]:
        """Refuse what :meth:`feed` cannot take.

        Arguments
        ---------
        state, samples, last
            As for :meth:`feed`.

        Returns
        -------
        list of torch.Tensor
            The samples, on the model's device.

        Raises
        ------
        ValueError
            As :meth:`feed`.
        """
        if not len(samples) == len(last) == state.batch_size:
            raise ValueError(
                f"{state.batch_size} streams need as many arrays of samples "
                f"and flags, got {len(samples)} and {len(last)}"
            )
        samples = [torch.as_tensor(new, device=self.device) for new in samples]
        for row, new in enumerate(samples):
            if state.tensors["closed"][row]:
                raise ValueError(f"stream {row} is closed")
            if new.dim() != 1 or not new.is_floating_point():
                raise ValueError(
                    f"stream {row} needs (N,) floating samples, "
                    f"got {tuple(new.shape)} {new.dtype}"
                )
            if not torch.isfinite(new).all():
                raise ValueError(f"stream {row}: samples that are NaN or infinite")
            if len(new) > 0:
                check_peak(new.abs().max().item())
        return samples

    def _run(self, state, rows, features, outputs):
        """Recognise a chunk of the streams ``rows``.

        ``features`` of it and of its right context are real.
        """
        part = state if len(rows) == state.batch_size else state.select(rows)
        window = F.pad(part.tensors["samples"], (0, self.unheard))
        places = torch.arange(window.shape[1], device=self.device)
        filled, seen = part.tensors["filled"], part.tensors["samples_seen"]
        places = places - filled.unsqueeze(1)  # 0 is the sample to come
        recorded = (places < 0) & (places >= -seen.unsqueeze(1))
        windows, heard = self.extractor.window_features(
            window, recorded, within("extractor", part.tensors), self.chunk_features
        )
        log_probs, frames, after = self.recognizer.step(
            windows,
            features,
            self.chunk,
            within("model", part.tensors),
        )
        for row, frame_probs, count in zip(rows, log_probs, frames.tolist()):
            outputs[row].append(frame_probs[:count])
        used = self.chunk_features * self.hop
        rest = part.tensors["samples"][:, used:]
        tensors = {
            **part.tensors,
            "samples": F.pad(rest, (0, self.capacity - rest.shape[1])),
            "filled": part.tensors["filled"] - used,
            **prefixed("extractor", heard),
            **prefixed("model", after),
        }
        part = StreamState(self.model_id, tensors)
        return part if len(rows) == state.batch_size else state.replaced(rows, part)

    def _close(self, state, rows, outputs, chunkwise):
        """Recognise what is left of the streams ``rows``, after which come zeros.

        Gives the state, and those of the streams of which nothing is left.
        """
        ended = []
        while rows:
            left = self._left(state)
            features = left[rows].clamp(max=self.window_features)
            running = [row for row in rows if left[row] > 0]
            if running:
                state = self._run(state, running, features[features > 0], outputs)
            left = self._left(state)
            ended += [row for row in rows if left[row] <= 0]
            rows = [row for row in rows if left[row] > 0]
            if chunkwise:
                break
        return state, ended

    def _left(self, state):
        """(B,) features of which not every sample has been heard, or that wait."""
        seen, filled = state.tensors["samples_seen"], state.tensors["filled"]
        # Frames stand at multiples of the hop, the first at the first sample.
        return seen // self.hop + 1 - (seen - filled + self.before) // self.hop


class Partial(NamedTuple):
    """What is known of the segment that is being spoken.

    ``words`` are final: later partials of the segment begin with them. ``rest`` is the
    text after them, which may still change. ``ended`` says that the segment is over;
    the next partial begins a new one. Then ``nbest`` has its readings, the best first,
    as many as the search was asked for and found. ``start_s`` is where the segment
    begins in the stream, and ``heard_s`` how much of the stream has been recognised.
    """

    words: tuple[Word, ...]
    rest: str
    ended: bool
    nbest: tuple[Hypothesis, ...] = ()
    start_s: float = 0.0
    heard_s: float = 0.0

    @property
    def text(self):
        """Everything, final or not."""
        return " ".join([word.text for word in self.words] + [self.rest]).strip()


AnyStreamingASR = TypeVar("AnyStreamingASR", bound="StreamingASR")


class StreamingASR:
    """Recognises speech while it is spoken.

    Arguments
    ---------
    model : StreamingModel
        Samples to log-probabilities.
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    search : hyperconformer.search.base.Searcher, optional
        As for :meth:`use_search`.
    endpoint_s : float
        Silence (blanks) after words that ends a segment; the encoder then begins anew,
        as with an utterance in training.

    Attributes
    ----------
    ngram : dict
        Options that bring the word n-grams of the model folder, for
        :func:`hyperconformer.search.ngram.ngram_search`; empty where it has none.

    Raises
    ------
    ValueError
        If ``endpoint_s`` is not positive, or the search cannot stream.
    """

    def __init__(
        self,
        model: StreamingModel,
        tokenizer: SentencePieceProcessor,
        search: Searcher | None = None,
        endpoint_s: float = 1.0,
    ):
        if not 0 < endpoint_s < math.inf:
            raise ValueError(f"endpoint_s must be finite and > 0, got {endpoint_s}")
        self.model, self.tokenizer = model, tokenizer
        self.recognizer = model.recognizer
        self.endpoint_s = endpoint_s
        self.ngram: dict[str, Any] = {}
        self.use_search(search)

    def use_search(self, search: Searcher | None = None) -> None:
        """Decode the streams that are opened from now on with another search.

        Arguments
        ---------
        search : hyperconformer.search.base.Searcher, optional
            One that streams; None = greedy, by the transducer where there is one.

        Raises
        ------
        ValueError
            If it needs the whole utterance, or does not fit the recogniser.
        """
        if search is None and self.recognizer.transducer is not None:
            search = TransducerSearcher(self.recognizer)
        self.search = self._prepare(search or GreedySearcher())

    def _prepare(self, search: Searcher) -> Searcher:
        search.prepare(self.tokenizer)
        search.begin(self.tokenizer)  # One that cannot stream says so now.
        return search

    @classmethod
    def from_hparams(
        cls: type[AnyStreamingASR],
        source: str | pathlib.Path | None = None,
        chunk_ms: float | None = None,
        left_context_ms: float | None = None,
        device: str | torch.device = "cpu",
        trusted: bool = False,
        search: Searcher | None = None,
        endpoint_s: float = 1.0,
        right_context_ms: float | None = None,
    ) -> AnyStreamingASR:
        """Load a model folder.

        Arguments
        ---------
        source, device, trusted
            As :func:`hyperconformer.hub.folder.load_model`; without a source, the
            shipped model that streams.
        chunk_ms, left_context_ms, right_context_ms : float, optional
            As :class:`StreamingModel`.
        search : hyperconformer.search.base.Searcher, optional
            As for :meth:`use_search`; None = a beam search with the folder's word
            n-grams or, where it has none, greedy.
        endpoint_s : float
            As :class:`StreamingASR`.

        Returns
        -------
        StreamingASR

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If it holds another kind of model, or model or search cannot stream.
        """
        source = source or DEFAULT_STREAMING_MODEL
        config, tokenizer = load_model(
            source, ("extractor", "recognizer"), device, trusted
        )
        modules = config["extractor"], config["recognizer"]
        model = StreamingModel(*modules, chunk_ms, left_context_ms, right_context_ms)
        if search is None:
            search = ngram_search(config["ngram"], config["recognizer"])
        asr = cls(model, tokenizer, search, endpoint_s)
        asr.ngram = config["ngram"]
        return asr

    def open(
        self, endpoint_s: float | None = None, search: Searcher | None = None
    ) -> "Stream":
        """Begin a stream.

        Arguments
        ---------
        endpoint_s : float, optional
            Silence that ends a segment of this stream, ``math.inf`` = none does; None =
            the recogniser's.
        search : hyperconformer.search.base.Searcher, optional
            One of this stream's own, for its own hot words; None = the recogniser's.

        Returns
        -------
        Stream

        Raises
        ------
        ValueError
            If the silence is not positive, or the search cannot stream.
        """
        if search is not None:
            self._prepare(search)
        endpoint_s = self.endpoint_s if endpoint_s is None else endpoint_s
        return Stream(self, endpoint_s, search or self.search)

    def partials(
        self, pieces: Iterable[np.ndarray | torch.Tensor]
    ) -> Iterator[Partial]:
        """What is known after each piece of a stream.

        Where the pieces end with an error or Ctrl-C, what was said before comes out
        first.

        Arguments
        ---------
        pieces : iterable of numpy.ndarray or torch.Tensor
            As for :meth:`Stream.feed`, all of the stream together.

        Yields
        ------
        Partial
            The last one with ``ended``.
        """
        stream = self.open()
        try:
            for samples in pieces:
                yield from stream.feed(samples)
        except (Exception, KeyboardInterrupt):
            yield from stream.close()
            raise
        yield from stream.close()

    def feed(
        self,
        streams: Sequence["Stream"],
        samples: Sequence[np.ndarray | torch.Tensor],
        last: bool | Sequence[bool] = False,
    ) -> list[list[Partial]]:
        """Feed several streams at once; the chunks that are full are one batch.

        Arguments
        ---------
        streams : list of Stream
            Opened here, wherever each of them stands.
        samples : list of numpy.ndarray or torch.Tensor
            As :meth:`Stream.feed`.
        last : bool or list of bool
            Whether these are the last samples (of each of them).

        Returns
        -------
        list of list of Partial
            Of each stream.

        Raises
        ------
        ValueError
            As :meth:`StreamingModel.feed`; then no stream has moved.
        """
        rest = [as_samples(new) for new in samples]
        last = [last] * len(streams) if isinstance(last, bool) else list(last)
        state = StreamState.stack([stream.state for stream in streams])
        rest = self.model.check_samples(state, rest, last)
        found: list[list[Partial]] = [[] for _ in streams]
        rows = list(range(len(streams)))
        # A chunk at a time: where it ends a segment, the next chunk begins anew.
        while rows:
            state = StreamState.stack([streams[row].state for row in rows])
            pieces, ends = [], []
            for row, lack in zip(rows, self.model.missing(state)):
                ends.append(last[row] and len(rest[row]) < lack)
                pieces.append(rest[row][:lack])
                rest[row] = rest[row][lack:]
            frames, state = self.model.feed(state, pieces, ends, chunkwise=True)
            ends = state.tensors["closed"].tolist()
            for row, new, after, end in zip(rows, frames, state.unstack(), ends):
                if partials := streams[row].take(new, after, end):
                    # Of the segment that goes on only the newest is told.
                    found[row] = [p for p in found[row] if p.ended] + partials
            rows = [
                row
                for row, end in zip(rows, ends)
                if len(rest[row]) > 0 or (last[row] and not end)
            ]
        return found


class Stream:
    """One stream of samples; :meth:`StreamingASR.open` makes it.

    Arguments
    ---------
    asr : StreamingASR
        What recognises it.
    endpoint_s : float
        As for :meth:`StreamingASR.open`.
    searcher : hyperconformer.search.base.Searcher
        Begins the search of each segment.

    Attributes
    ----------
    state : hyperconformer.core.state.StreamState
        What the model remembers, a batch of one.
    search : hyperconformer.search.base.Search
        The search of the segment that is being spoken.
    begin : int
        The frame of the stream that the segment begins with.
    words : list of hyperconformer.core.words.Word
        Those of the segment that are final.
    """

    def __init__(self, asr: StreamingASR, endpoint_s: float, searcher: Searcher):
        if not endpoint_s > 0:
            raise ValueError(f"endpoint_s must be > 0, got {endpoint_s}")
        self.asr, self.endpoint_s, self.searcher = asr, endpoint_s, searcher
        self.state: StreamState = asr.model.init_state(1)
        self._begin_segment(0)

    def feed(
        self, samples: np.ndarray | torch.Tensor, sample_rate_hz: int | None = None
    ) -> list[Partial]:
        """Take the next samples.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (N,) any number, of a type that :func:`hyperconformer.audio.as_samples`
            takes.
        sample_rate_hz : int, optional
            Their rate, which must be the model's; None = it is.

        Returns
        -------
        list of Partial
            At most one of the current segment, and those of segments that ended.

        Raises
        ------
        ValueError
            If the stream is closed, the rate or the type of the samples another, or a
            sample not finite; the stream stays as it was.
        """
        rate_hz = self.asr.model.sample_rate_hz
        if sample_rate_hz not in (None, rate_hz):
            raise ValueError(
                f"the stream has samples at {rate_hz} Hz, got {sample_rate_hz} Hz"
            )
        return self.asr.feed([self], [samples])[0]

    def close(self) -> list[Partial]:
        """No sample follows: recognise what waits for its chunk.

        Returns
        -------
        list of Partial
            The last one with ``ended``.
        """
        return self.asr.feed([self], [torch.zeros(0)], last=True)[0]

    def take(
        self, frames: torch.Tensor, state: StreamState, last: bool
    ) -> list[Partial]:
        """Search frames that :meth:`StreamingModel.feed` has computed.

        Arguments
        ---------
        frames : torch.Tensor
            Whole chunks of this stream, from :meth:`StreamingModel.feed`.
        state : hyperconformer.core.state.StreamState
            The stream's own state after them, a batch of one.
        last : bool
            Whether they are the last ones.

        Returns
        -------
        list of Partial
            As :meth:`feed`.
        """
        self.state, partials = state, []
        model = self.asr.model
        patience = 1000 * self.endpoint_s / model.frame_ms
        if self.searcher.takes == "ctc":
            frames = model.ctc_log_probs(frames)
        # Words become final at the end of a chunk, so that the cuts of the samples
        # change nothing.
        for chunk in frames.split(model.chunk.chunk_frames):
            while len(chunk) > 0:
                # No silence can be long enough before so many frames.
                wait = min(patience - self.search.silence, len(chunk))
                count = max(1, math.ceil(wait))
                self.search.advance(chunk[:count])
                chunk = chunk[count:]
                if self.search.silence < patience:
                    continue
                if any(self.search.partial()):
                    partials.append(self._partial(ended=True))
                    self.state = model.forget(self.state)
                else:  # Nothing was said that a search would have to remember.
                    self._begin_segment(self.begin + self.search.frames)
            self._find_words()
        if last or len(frames) > 0:
            partials.append(self._partial(ended=last))
        return partials

    def _begin_segment(self, begin: int) -> None:
        self.search: Search = self.searcher.begin(self.asr.tokenizer)
        self.begin = begin
        self.words: list[Word] = []
        self.spelled = 0

    def _find_words(self) -> str:
        """Spell the tokens that have become final; returns the text after them."""
        tokens, rest = self.search.partial()
        frame_s = self.asr.model.frame_ms / 1000
        new, start_s = tokens[self.spelled :], self.begin * frame_s
        self.words += spell_words(new, self.asr.tokenizer, frame_s, start_s)
        self.spelled = len(tokens)
        return rest

    def _partial(self, ended: bool) -> Partial:
        nbest = tuple(self.search.finish()) if ended else ()
        rest = self._find_words()
        frame_s = self.asr.model.frame_ms / 1000
        start_s, heard_s = (
            frame_s * frame for frame in (self.begin, self.begin + self.search.frames)
        )
        partial = Partial(tuple(self.words), rest, ended, nbest, start_s, heard_s)
        if ended:
            self._begin_segment(self.begin + self.search.frames)
        return partial


# Pieces in which files and standard input are read.
PIECE_S = 0.02


def read_pieces(path, sample_rate_hz):
    """A file's samples as they would come from a microphone.

    Arguments
    ---------
    path : str or pathlib.Path
        As :func:`hyperconformer.audio.read_audio`.
    sample_rate_hz : int
        Wanted rate.

    Returns
    -------
    sequence of torch.Tensor
        (N,) float32 samples each.
    """
    return read_audio(path, sample_rate_hz).split(int(PIECE_S * sample_rate_hz))


def read_pcm(file, sample_rate_hz):
    """Signed 16-bit little-endian mono samples, as they come.

    Arguments
    ---------
    file : binary file
        For instance ``sys.stdin.buffer``.
    sample_rate_hz : int
        Their rate.

    Yields
    ------
    numpy.ndarray
        (N,) int16 samples.

    Raises
    ------
    ValueError
        If the file ends within a sample, after the whole samples.
    """
    size = 2 * int(PIECE_S * sample_rate_hz)
    while data := file.read(size):
        yield np.frombuffer(data, dtype="<i2", count=len(data) // 2)
        if len(data) % 2:
            raise ValueError("the PCM data end within a 16-bit sample")
