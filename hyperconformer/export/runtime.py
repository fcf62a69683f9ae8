"""Exported graphs in ONNX Runtime: what any client does, in Python."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from hyperconformer.core.extras import import_extra

# Of the folder's contract; a client refuses others.
FORMAT, FORMAT_VERSION = "hyperconformer-onnx", 1
# The files of an exported folder that clients read.
CONTRACT_FILE, TOKENS_FILE, PHONES_FILE = "export.json", "tokens.txt", "phones.txt"
GRAPH_FILE, INT8_FILE = "model.onnx", "model.int8.onnx"


class OnnxModel:
    """A graph and its contract.

    Arguments
    ---------
    folder : str or pathlib.Path
        What ``hyperconformer export`` wrote.
    file : str
        The graph in it.
    threads : int
        Threads that compute.

    Raises
    ------
    FileNotFoundError
        If the folder holds no such graph.
    ValueError
        If it was written by another version.
    """

    def __init__(
        self, folder: str | pathlib.Path, file: str = "model.onnx", threads: int = 1
    ):
        folder = pathlib.Path(folder)
        for name in (CONTRACT_FILE, file):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} is no exported model: it lacks {name}; "
                    "`hyperconformer export` writes one"
                )
        self.contract = json.loads((folder / CONTRACT_FILE).read_text("utf-8"))
        if self.contract.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"{folder / CONTRACT_FILE} has version {self.contract.get('version')}, "
                f"expected {FORMAT_VERSION}: export the model again"
            )
        runtime = import_extra("onnxruntime", "export", "ONNX graphs")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3  # It warns of the optional lengths.
        self.session = runtime.InferenceSession(
            str(folder / file), options, providers=["CPUExecutionProvider"]
        )

    def log_probs(self, samples: np.ndarray) -> np.ndarray:
        """Recognise one utterance, whole or chunk by chunk as the graph does.

        Arguments
        ---------
        samples : numpy.ndarray
            (N,) float32, full scale = 1, at the contract's rate.

        Returns
        -------
        numpy.ndarray
            (T, V) float32.
        """
        return self.heads(samples)[0]

    def heads(self, samples: np.ndarray) -> list[np.ndarray]:
        """The same of every head: of the tokens, and of phones if the graph has them.

        Arguments
        ---------
        samples : numpy.ndarray
            (N,), as for :meth:`log_probs`.

        Returns
        -------
        list of numpy.ndarray
            (T, V) and (T, P) float32.
        """
        if self.contract["kind"] == "offline":
            tokens, _, *phones = self._run({"samples": samples[None]})
            return [head[0] for head in (tokens, *phones)]
        heads = zip(*(heads for _, heads in self._chunks(samples)))
        return [np.concatenate(chunks) for chunks in heads]

    def chunks(
        self,
        samples: np.ndarray,
        ended: Callable[[np.ndarray], bool] = lambda frames: False,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Recognise one stream chunk by chunk, with a graph of streams.

        Arguments
        ---------
        samples : numpy.ndarray
            As for :meth:`log_probs`.
        ended : callable
            Takes each chunk's frames; where it says True, a segment has ended, and the
            next chunk begins anew, as after :meth:`forget`.

        Yields
        ------
        heard : int
            So many samples were needed.
        frames : numpy.ndarray
            (T, V) float32 of the chunk.
        """
        for heard, (frames, *_) in self._chunks(samples, ended):
            yield heard, frames

    def _chunks(self, samples, ended=lambda frames: False):
        """The same, with a list of every head's frames."""
        window, shift = self.contract["window"], self.contract["shift"]
        before = self.contract["before"]
        samples = np.concatenate([np.zeros(before, "f4"), samples])
        state = self.init_state(1)
        for begin in range(0, len(samples), shift):
            heard = samples[begin : begin + window]
            if len(heard) < before:
                break
            now = np.zeros((1, window), "f4")
            now[0, : len(heard)] = heard
            length = np.array([len(heard)])
            frames, count, state, *phones = self.step(now, length, state)
            heads = [head[0, : count[0]] for head in (frames, *phones)]
            if ended(heads[0]):
                state = self.forget(state)
            yield begin + len(heard) - before, heads

    def init_state(self, batch_size: int) -> np.ndarray:
        """(B, S) float32 state of streams before their first sample."""
        return np.zeros((batch_size, self.contract["state_dim"]), "f4")

    def forget(self, state: np.ndarray) -> np.ndarray:
        """Begin segments anew: of each stream, the level of what was heard stays.

        Arguments
        ---------
        state : numpy.ndarray
            (B, S) float32.

        Returns
        -------
        numpy.ndarray
            (B, S) float32.
        """
        anew = self.init_state(len(state))
        kept = self.contract["kept"]
        anew[:, :kept] = state[:, :kept]
        return anew

    def step(
        self, samples: np.ndarray, length: np.ndarray, state: np.ndarray
    ) -> list[np.ndarray]:
        """The next chunk of each stream, see :class:`.streaming.StreamingGraph`."""
        return self._run({"samples": samples, "length": length, "state": state})

    def _run(self, inputs: dict[str, Any]) -> list[np.ndarray]:
        return self.session.run(None, inputs)
