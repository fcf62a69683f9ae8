"""Explicit state of streams: tensors by name, never changed in place."""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
"""Streaming state: named tensors, each with the batch as its first dimension.

``frames_seen`` (B,) int64, the real frames of each stream so far, is always among them.
States of single streams are stacked by concatenating, and split by indexing, each
tensor's first dimension.
"""


def prefixed(name, state):
    """A part's state under the names that it has in the whole.

    >>> prefixed("mixer", {"sums": 1})
    {'mixer.sums': 1}
    """
    return {f"{name}.{key}": value for key, value in state.items()}


def within(name, state):
    """A part's state out of the whole; None of None. Undoes :func:`prefixed`.

    >>> within("mixer", {"mixer.sums": 1, "past": 2})
    {'sums': 1}
    """
    if state is None:
        return None
    start = len(name) + 1
    return {
        key[start:]: value for key, value in state.items() if key[:start] == f"{name}."
    }


@dataclass(frozen=True)
class StreamState:
    """All that a batch of streams remembers.

    Arguments
    ---------
    model_id : str
        Which :class:`StreamingModel` it belongs to.
    tensors : dict of str to torch.Tensor
        The batch is each tensor's first dimension; no step changes a shape.

    Example
    -------
    >>> both = StreamState("a", {"sums": torch.tensor([[1.0], [2.0]])})
    >>> first, second = both.unstack()
    >>> StreamState.stack([second, first]).tensors["sums"].tolist()
    [[2.0], [1.0]]
    """

    model_id: str
    tensors: dict[str, torch.Tensor]

    @property
    def batch_size(self):
        """Number of streams."""
        return len(next(iter(self.tensors.values())))

    @property
    def num_bytes(self):
        """Size of a batch's memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def select(self, rows):
        """The streams ``rows``, a list of int, as a batch of their own."""
        picked = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return StreamState(self.model_id, picked)

    def replaced(self, rows, other):
        """This batch with the streams ``rows`` taken from the batch ``other``."""
        tensors = {}
        for name, tensor in self.tensors.items():
            tensors[name] = tensor.clone()
            tensors[name][rows] = other.tensors[name]
        return StreamState(self.model_id, tensors)

    def unstack(self):
        """A list of the streams, each a batch of one."""
        if self.batch_size == 1:
            return [self]
        # Copies: a view would keep the memory of the whole batch.
        rows = {name: tensor.split(1) for name, tensor in self.tensors.items()}
        return [
            StreamState(self.model_id, {name: rows[name][i].clone() for name in rows})
            for i in range(self.batch_size)
        ]

    @classmethod
    def stack(cls, states):
        """Streams of one model, wherever each of them stands, as one batch.

        Arguments
        ---------
        states : list of StreamState
            At least one.

        Returns
        -------
        StreamState

        Raises
        ------
        ValueError
            If there is none, or they belong to different models.
        """
        if len(states) == 1:  # The pieces of a single stream are small and many.
            return states[0]
        models = {state.model_id for state in states}
        if len(models) != 1:
            raise ValueError(
                f"streams of one model can be stacked, got {len(states)} streams "
                f"of {len(models)} models"
            )
        names = states[0].tensors
        tensors = {name: torch.cat([s.tensors[name] for s in states]) for name in names}
        return cls(models.pop(), tensors)

    def save(self, path):
        """Write a safetensors file with the model's identity in its metadata."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata={"model_id": self.model_id})

    @classmethod
    def load(cls, path, device="cpu"):
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is no saved state.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                model_id = (file.metadata() or {}).get("model_id")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} holds no state of streams: {error}") from error
        if model_id is None or not tensors:
            raise ValueError(f"{path} holds no state of streams")
        return cls(model_id, tensors)
