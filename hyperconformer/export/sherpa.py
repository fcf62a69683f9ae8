"""sherpa-onnx's contract for streams of samples, around a graph of chunks.

``OnlineRecognizer.from_t_one_ctc`` is the one contract of sherpa-onnx that hands
samples to a streaming model. It calls with 2400 samples at a time, as integers, takes
any number of frames, none included, and keeps one float16 vector a stream, which begins
with zeros. Here a graph of its own collects the samples until a chunk is full, and
runs the graph of chunks inside an ``If``.

A float32 travels as three float16, without a loss::

    x = 2^12 a + b + 2^-11 c

for abs(x) between 2^-12 and 2^28; below, the error is at most 2^-36. Two halves would
lose two bits in every chunk of an hour.

The contract knows no end of a stream: clients append zeros. Zeros that fill the end of
a chunk are therefore no recording here, and their frames are blanks.

sherpa-onnx takes each frame for 30 ms, in times and in the silence of its endpoint
rules. So a frame is given as often as a tick of 30 ms begins in it, once or twice;
repetitions are no new tokens to CTC.
"""

import itertools
from typing import Any

from hyperconformer.core.extras import import_extra
from hyperconformer.core.tokens import BLANK_INDEX

# Samples of a call: 300 ms at the 8 kHz that sherpa-onnx believes in.
PIECE = 2400
SHERPA_RATE_HZ = 8000
TICK_MS = 30
# Of the three halves of a float32.
SCALES = (2.0**12, 1.0, 2.0**-11)
FULL_SCALE = 32768.0
# Zeros, at the end of a chunk, that are no recording: those that clients append to a
# stream to say that it is over. As many as a window has at 16 kHz.
SILENCE = 400
IMPOSSIBLE = -100.0
# The name of the node that fails where streams of one batch do not go in step.
IN_STEP = "streams_of_a_batch_must_have_begun_together_else_call_decode_stream_for_each"


def tokens_text(pieces: list[str]) -> str:
    """``tokens.txt`` of sherpa-onnx: a token and its number a line.

    Arguments
    ---------
    pieces : list of str
        Of the tokenizer; the blank gets sherpa-onnx's name.

    Returns
    -------
    str

    Example
    -------
    >>> print(tokens_text(["<unk>", "A"]), end="")
    <blk> 0
    A 1
    """
    names = list(pieces)
    names[BLANK_INDEX] = "<blk>"
    return "".join(f"{name} {index}\n" for index, name in enumerate(names))


def t_one(chunks: Any, graph: Any) -> Any:
    """Wrap a graph of chunks for ``OnlineRecognizer.from_t_one_ctc``.

    Arguments
    ---------
    chunks : onnx.ModelProto
        Made of ``graph``, quantised or not; not changed.
    graph : hyperconformer.export.streaming.StreamingGraph
        Sizes.

    Returns
    -------
    onnx.ModelProto
        Inputs ``x`` (B, 2400, 1) int32 and ``state`` (B, D) float16; outputs
        ``log_probs`` (B, T, V) float32, T = 0 until a chunk is full, and ``new_state``.

    Raises
    ------
    ValueError
        If a chunk is shorter than a call.
    """
    onnx = import_extra("onnx", "export", "ONNX graphs")
    if graph.shift < PIECE:
        least = 1000 * PIECE / graph.extractor.features.compute_STFT.sample_rate
        raise ValueError(
            f"sherpa-onnx brings {PIECE} samples in a call: a chunk must last at least "
            f"{least:g} ms"
        )
    return _Wrapper(onnx, chunks, graph).model()


def state_dim(graph: Any) -> int:
    """Length D of the float16 state: model, waiting samples, their count, next tick."""
    return len(SCALES) * (graph.layout.size + graph.window + 2)


def frame_and_tick(graph: Any) -> tuple[int, int]:
    """Samples of an encoder frame, and from one frame of sherpa-onnx to the next.

    Arguments
    ---------
    graph : hyperconformer.export.streaming.StreamingGraph
        Sizes.

    Returns
    -------
    tuple of int
    """
    frame = graph.shift // graph.chunk.chunk_frames
    rate = graph.extractor.features.compute_STFT.sample_rate
    # Every frame must be heard once, however short.
    return frame, min(TICK_MS * rate // 1000, frame)


class _Wrapper:
    """Builds the graph of :func:`t_one` node by node."""

    def __init__(self, onnx, chunks, graph):
        self.helper, self.types = onnx.helper, onnx.TensorProto
        # Its names must differ from those around it.
        self.inner = onnx.compose.add_prefix(chunks, "chunk/").graph
        self.chunks, self.graph = chunks, graph
        self.numbers = itertools.count()
        self.nodes: list = []
        self.constants: list = list(self.inner.initializer)

    def model(self):
        """The whole graph."""
        helper, types, graph = self.helper, self.types, self.graph
        vocabulary = self.inner.output[0].type.tensor_type.shape.dim[2].dim_value
        size, window = graph.layout.size, graph.window
        total = size + window + 2

        batch = self.add(
            "Slice", self.add("Shape", "state"), self.ints([0]), self.ints([1])
        )
        halves = self.add("Reshape", "state", self.ints([0, len(SCALES), total]))
        halves = self.add("Cast", halves, to=types.FLOAT)
        scales = self.floats(SCALES, [1, len(SCALES), 1])
        flat = self.add(
            "ReduceSum", self.add("Mul", halves, scales), self.ints([1]), keepdims=0
        )
        state, waiting, count, tick = self.add(
            "Split", flat, self.ints([size, window, 1, 1]), axis=1, outputs=4
        )
        count = self.add("Cast", count, to=types.INT64)
        tick = self.add("Cast", tick, to=types.INT64)

        # Behind the samples that wait, of which there may be any number.
        new = self.add("Reshape", "x", self.ints([0, PIECE]))
        new = self.add("Cast", new, to=types.FLOAT)
        # sherpa-onnx multiplies by 32767 and cuts: 16 bits come one closer to zero.
        new = self.add("Add", new, self.add("Sign", new))
        source = self.add("Concat", waiting, new, self.zeros(batch, 1), axis=1)
        place = self.ints(range(window + PIECE), [1, window + PIECE])
        filled = self.add("Add", count, self.ints([graph.before]))
        behind = self.add("Min", self.add("Sub", place, filled), self.ints([PIECE]))
        index = self.add(
            "Where",
            self.add("Less", place, filled),
            place,
            self.add("Add", behind, self.ints([window])),
        )
        samples = self.add("GatherElements", source, index, axis=1)
        count = self.add("Add", count, self.ints([PIECE]))

        ready = self.add("GreaterOrEqual", count, self.ints([window - graph.before]))
        ready = self.add("Cast", ready, to=types.INT64)
        some = self.add("ReduceMax", ready, keepdims=0)
        differ = self.add("Sub", some, self.add("ReduceMin", ready, keepdims=0))
        one = self.add("Gather", self.floats([1.0]), differ, name=IN_STEP)
        samples = self.add("Mul", samples, one)

        branches = {
            "then_branch": self.chunk(samples, state, count, tick, batch, vocabulary),
            "else_branch": self.wait(samples, state, count, tick, batch, vocabulary),
        }
        condition = self.add("Cast", some, to=types.BOOL)
        outputs = ["log_probs", "state_after", "samples_after", "counts_after"]
        self.nodes.append(helper.make_node("If", [condition], outputs, **branches))
        counts = self.add("Cast", "counts_after", to=types.FLOAT)
        rest = self.add("Concat", "state_after", "samples_after", counts, axis=1)
        parts = []
        for scale in SCALES:
            scaled = self.add("Mul", rest, self.floats([1 / scale]))
            parts.append(self.add("Cast", scaled, to=types.FLOAT16))
            half = self.add("Cast", parts[-1], to=types.FLOAT)
            rest = self.add("Sub", rest, self.add("Mul", half, self.floats([scale])))
        self.add("Concat", *parts, axis=1, result="new_state")

        wide = state_dim(graph)
        value = helper.make_tensor_value_info
        whole = helper.make_graph(
            self.nodes,
            "t_one",
            [
                value("x", types.INT32, ["batch", PIECE, 1]),
                value("state", types.FLOAT16, ["batch", wide]),
            ],
            [
                value("log_probs", types.FLOAT, ["batch", "frames", vocabulary]),
                value("new_state", types.FLOAT16, ["batch", wide]),
            ],
            self.constants,
        )
        return helper.make_model(
            whole,
            opset_imports=self.chunks.opset_import,
            ir_version=self.chunks.ir_version,
        )

    def chunk(self, samples, state, count, tick, batch, vocabulary):
        """The branch in which a chunk is full."""
        graph, outer, self.nodes = self.graph, self.nodes, []
        window, shift = graph.window, graph.shift
        first, second, third = (entry.name for entry in self.inner.input)
        now = self.slice(samples, 0, window)
        self.add("Mul", now, self.floats([1 / FULL_SCALE]), result=first)
        self.heard(now, result=second)
        self.add("Identity", state, result=third)
        self.nodes.extend(self.inner.node)
        rest = self.slice(samples, shift, window + PIECE)
        rest = self.add("Concat", rest, self.zeros(batch, shift - PIECE), axis=1)
        count = self.add("Sub", count, self.ints([shift]))
        # A phone head's output comes after these, and is nothing to sherpa-onnx.
        log_probs, frames, after = (entry.name for entry in self.inner.output[:3])
        log_probs = self.or_blank(log_probs, frames, vocabulary)
        log_probs, tick = self.at_ticks(log_probs, tick)
        counts = self.add("Concat", count, tick, axis=1)
        nodes, self.nodes = self.nodes, outer
        return self.branch("chunk", nodes, [log_probs, after, rest, counts])

    def heard(self, samples, result):
        """How many samples there are, without the zeros that end them."""
        window = self.graph.window
        sounds = self.add("Cast", self.add("Abs", samples), to=self.types.BOOL)
        sounds = self.add("Cast", sounds, to=self.types.INT64)
        number = self.ints(range(1, window + 1), [1, window])
        last = self.add("Mul", sounds, number)
        last = self.add("ReduceMax", last, self.ints([1]), keepdims=0)
        ended = self.add("Less", last, self.ints([window - SILENCE]))
        self.add("Where", ended, last, self.ints([window]), result=result)

    def or_blank(self, log_probs, frames, vocabulary):
        """Log-probabilities, and where frames are not real a blank for sure."""
        count = self.graph.chunk.chunk_frames
        place = self.ints(range(count), [1, count, 1])
        real = self.add("Less", place, self.add("Unsqueeze", frames, self.ints([1, 2])))
        blank = [0.0 if i == BLANK_INDEX else IMPOSSIBLE for i in range(vocabulary)]
        return self.add(
            "Where", real, log_probs, self.floats(blank, [1, 1, vocabulary])
        )

    def at_ticks(self, log_probs, first):
        """The frames in which ticks fall, and the first tick of the next chunk.

        Ticks (B, 1) are counted in samples from the chunk's begin. Streams of one batch
        go by the same, whenever they came into it.
        """
        frame, tick = (self.ints([size], []) for size in frame_and_tick(self.graph))
        shift = self.ints([self.graph.shift], [])
        start = self.add("ReduceMax", first, keepdims=0)
        ticks = self.add("Range", start, shift, tick)
        log_probs = self.add("Gather", log_probs, self.add("Div", ticks, frame), axis=1)
        after = self.add("Mul", self.add("Size", ticks), tick)
        after = self.add("Sub", self.add("Add", start, after), shift)
        return log_probs, self.add("Expand", after, self.add("Shape", first))

    def wait(self, samples, state, count, tick, batch, vocabulary):
        """The branch in which the samples wait for more."""
        outer, self.nodes = self.nodes, []
        shape = self.add("Concat", batch, self.ints([0, vocabulary]), axis=0)
        results = [
            self.add("Expand", self.floats([0.0], [1, 1, 1]), shape),
            self.add("Identity", state),
            self.slice(samples, 0, self.graph.window),
            self.add("Concat", count, tick, axis=1),
        ]
        nodes, self.nodes = self.nodes, outer
        return self.branch("wait", nodes, results)

    def branch(self, name, nodes, results):
        kinds = [self.types.FLOAT] * 3 + [self.types.INT64]
        outputs = [
            self.helper.make_tensor_value_info(result, kind, None)
            for result, kind in zip(results, kinds)
        ]
        return self.helper.make_graph(nodes, name, [], outputs)

    def add(self, operator, *inputs, result=None, outputs=1, name=None, **attributes):
        """A node; its output's name, or with several outputs their names."""
        place = f"{operator}_{next(self.numbers)}"
        names = [f"{place}_{i}" for i in range(outputs)] if result is None else [result]
        self.nodes.append(
            self.helper.make_node(
                operator, list(inputs), names, name=name or place, **attributes
            )
        )
        return names[0] if outputs == 1 else names

    def slice(self, values, begin, end):
        """Columns of a (B, N) tensor."""
        bounds = self.ints([begin]), self.ints([end]), self.ints([1])
        return self.add("Slice", values, *bounds)

    def zeros(self, batch, columns):
        """(B, columns)."""
        shape = self.add("Concat", batch, self.ints([columns]), axis=0)
        return self.add("Expand", self.floats([0.0], [1, 1]), shape)

    def ints(self, values, shape=None):
        return self.constant(self.types.INT64, values, shape)

    def floats(self, values, shape=None):
        return self.constant(self.types.FLOAT, values, shape)

    def constant(self, kind, values, shape):
        values = list(values)
        name = f"constant_{next(self.numbers)}"
        shape = [len(values)] if shape is None else shape
        self.constants.append(self.helper.make_tensor(name, kind, shape, values))
        return name
