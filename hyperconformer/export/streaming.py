"""The graph of streams: a chunk of each, and all that they remember as one vector."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from hyperconformer.core.state import State, prefixed, within
from hyperconformer.export.features import exportable
from hyperconformer.export.offline import PHONE_OUTPUT
from hyperconformer.transcribe.streaming import StreamingModel

# What stands for 0 where 0 stands for a beginning that is another number.
NEARLY_ZERO = 2.0**-30


class Place(NamedTuple):
    """Where a tensor of the state lies in the flat vector.

    ``initial`` (1, ...) is what a stream begins with, None = zeros.
    """

    name: str
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    initial: torch.Tensor | None


class StateLayout:
    """Named tensors of a state as one (B, S) float32 vector a stream, and back.

    Clients begin a stream with a vector of zeros. Where a tensor begins otherwise, with
    minus infinity for instance, 0 stands for that. Counters become floats, which hold
    whole numbers up to 2^24 exactly: a week of frames.

    Arguments
    ---------
    state : dict of str to torch.Tensor
        Of one stream before its first sample.

    Example
    -------
    >>> layout = StateLayout({"sums": torch.zeros(1, 2, 3), "seen": torch.zeros(1)})
    >>> layout.size, layout.unpack(torch.zeros(5, 7))["sums"].shape
    (7, torch.Size([5, 2, 3]))
    """

    def __init__(self, state: State):
        self.places: list[Place] = []
        self.size = 0
        for name, tensor in state.items():
            shape = tuple(tensor.shape[1:])
            initial = tensor if tensor.any() else None
            self.places.append(Place(name, self.size, shape, tensor.dtype, initial))
            self.size += math.prod(shape)

    def pack(self, state: State) -> torch.Tensor:
        """(B, S) float32 of a state."""
        flat = []
        for name, _, shape, _, initial in self.places:
            part = state[name].float()
            if initial is not None:
                begins = part == initial
                part = torch.where(part == 0, NEARLY_ZERO, part)
                part = torch.where(begins, 0.0, part)
            flat.append(part.flatten(1) if shape else part[:, None])
        return torch.cat(flat, dim=1)

    def unpack(self, vector: torch.Tensor) -> State:
        """The state in a (B, S) vector."""
        state = {}
        for name, begin, shape, dtype, initial in self.places:
            part = vector[:, begin : begin + math.prod(shape)].reshape(-1, *shape)
            if initial is not None:
                part = torch.where(part == 0, initial, part)
            state[name] = part.to(dtype)
        return state


class StreamingGraph(nn.Module):
    """The next chunk of each stream to log-probabilities.

    A chunk's first window begins ``before`` samples before it, and its last one ends
    some samples after it and its right context. A call takes all of these: ``window``
    samples from ``before`` ahead of the chunk's begin on, of which the next call takes
    those from ``shift`` on again.

    Arguments
    ---------
    model : hyperconformer.transcribe.streaming.StreamingModel
        What is exported, with its chunk rule.

    Attributes
    ----------
    inputs, outputs : tuple of str
        Names, with :data:`.offline.PHONE_OUTPUT` where the recogniser has a phone head.
    window, shift, before : int
        Samples, see above.
    layout : StateLayout
        What a stream remembers.
    kept : int
        So many values at its beginning are the features', and stay where a segment
        ends.

    Raises
    ------
    ValueError
        If the features cannot be exported.
    """

    inputs = ("samples", "length", "state")
    outputs: tuple[str, ...] = ("log_probs", "frames", "new_state")

    def __init__(self, model: StreamingModel):
        super().__init__()
        if model.recognizer.phones:
            self.outputs = (*self.outputs, PHONE_OUTPUT)
        self.extractor = exportable(model.extractor)
        self.recognizer = model.recognizer.eval()
        self.chunk, self.hop = model.chunk, model.hop
        self.chunk_features = model.chunk_features
        self.window_features = model.window_features
        self.window, self.before = model.capacity, model.before
        self.unheard, self.shift = model.unheard, model.chunk_features * model.hop
        self.layout = StateLayout(
            {
                **prefixed("extractor", self.extractor.init_state(1)),
                **prefixed("model", self.recognizer.init_state(1, chunk=model.chunk)),
            }
        )
        self.kept = sum(
            math.prod(place.shape)
            for place in self.layout.places
            if place.name.startswith("extractor.")
        )

    def forward(
        self, samples: torch.Tensor, length: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Recognise the next chunk.

        Arguments
        ---------
        samples : torch.Tensor
            (B, window) float32, full scale = 1. Before a stream's begin and after its
            end may stand anything finite.
        length : torch.Tensor
            (B,) int64 how many of them have been heard, those before a stream's begin
            included: ``window``, but for the last call of a stream; 0 = none, the
            stream waits.
        state : torch.Tensor
            (B, S) float32: zeros, or the last call's.

        Returns
        -------
        log_probs : torch.Tensor
            (B, T, V) float32 of the CTC head.
        frames : torch.Tensor
            (B,) int64 how many of the T frames are real.
        new_state : torch.Tensor
            (B, S) float32.
        phone_log_probs : torch.Tensor
            (B, T, P) float32 of the phone head, where there is one.
        """
        tensors = self.layout.unpack(state)
        place = torch.arange(self.window + self.unheard, device=samples.device)
        seen = tensors["model.transformer.frames_seen"]
        begin = torch.where(seen == 0, self.before, 0)
        recorded = (place >= begin[:, None]) & (place < length[:, None])
        samples = nn.functional.pad(samples, (0, self.unheard))
        before = within("extractor", tensors)
        windows, heard = self.extractor.window_features(
            samples.masked_fill(~recorded, 0.0), recorded, before, self.chunk_features
        )
        features = (length - self.before) // self.hop + 1
        features = features.clamp(min=0, max=self.window_features)
        frames, counts, after = self.recognizer.step(
            windows, features, self.chunk, within("model", tensors)
        )
        phones = []
        if self.recognizer.phones:
            phones.append(self.recognizer.phone_log_probs(frames))
        if self.recognizer.steps_to_encoded:
            frames = self.recognizer.ctc_log_probs(frames)
        waits = features == 0
        new_state = prefixed("model", after)
        for name, tensor in before.items():
            kept = waits.view(-1, *[1] * (tensor.dim() - 1))
            new_state[f"extractor.{name}"] = torch.where(kept, tensor, heard[name])
        return frames, counts, self.layout.pack(new_state), *phones

    def example(self) -> tuple[torch.Tensor, ...]:
        """Inputs to record the graph with: two streams."""
        length = torch.tensor([self.window, self.window // 2])
        state = torch.zeros(2, self.layout.size)
        return 0.1 * torch.randn(2, self.window), length, state

    def dynamic_shapes(self) -> dict[str, Any]:
        """Which sizes may differ between calls."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in self.inputs}
