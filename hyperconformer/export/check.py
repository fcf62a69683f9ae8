"""Exported graphs beside PyTorch: log-probabilities, words, time and memory."""

import copy
import pathlib
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from hyperconformer.audio import read_audio
from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.evaluation.error_rates import evaluate, summarize
from hyperconformer.export.runtime import OnnxModel
from hyperconformer.model.features import FeatureExtractor
from hyperconformer.model.recognizer import Recognizer

# What an export may differ by; in log-probabilities also by as much as PyTorch's own
# float32, which rounds more where a model is deep or its scores are large.
MAX_DIFFERENCE = 1e-4
MAX_WER_POINTS = {"model.onnx": 0.1, "model.int8.onnx": 0.5}
PYTORCH = "PyTorch"


class Row(NamedTuple):
    """What was measured of PyTorch or of a graph.

    ``difference`` is the largest of log-probabilities to those of PyTorch with
    :func:`precise_spectra` and, for whole utterances, :func:`in_float64`, ``wer`` in
    percent, ``same`` the utterances with PyTorch's words, ``rtf`` the processor's
    seconds for each second of audio on one thread, ``size`` in bytes, ``memory`` in
    MiB: what the peak of a process grew by from before the graph was loaded; None where
    it is not measured.
    """

    name: str
    difference: float
    wer: float
    same: int
    rtf: float
    size: int | None = None
    memory: float | None = None


class Report(NamedTuple):
    """Rows, the first of PyTorch, of how many utterances, and what is not right."""

    rows: list[Row]
    utterances: int
    faults: list[str]

    def table(self) -> str:
        """As Markdown."""
        lines = [
            "| | max difference of log-probabilities | WER | utterances with PyTorch's "
            "words | real-time factor, one thread | size | memory |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for row in self.rows:
            lines.append(
                f"| {row.name} | {row.difference:.1e} "
                f"| {row.wer:.2f} % | {row.same} of {self.utterances} "
                f"| {row.rtf:.4f} "
                f"| {'' if row.size is None else f'{row.size / 1e6:.1f} MB'} "
                f"| {'' if row.memory is None else f'{row.memory:.0f} MiB'} |"
            )
        return "\n".join(lines) + "\n"


def greedy(log_probs: np.ndarray) -> list[int]:
    """The best token of each frame, repetitions and blanks taken out.

    Arguments
    ---------
    log_probs : numpy.ndarray
        (T, V).

    Returns
    -------
    list of int

    Example
    -------
    >>> greedy(np.eye(3)[[0, 2, 2, 0, 2]])
    [2, 2]
    """
    best = log_probs.argmax(-1)
    begins = np.append(True, best[1:] != best[:-1])
    return best[begins & (best != BLANK_INDEX)].tolist()


def precise_spectra(extractor: FeatureExtractor) -> FeatureExtractor:
    """A copy whose Fourier transform computes in float64.

    What float32 rounds there is in proportion to a frame's loudest frequency, and large
    in the logarithm of a faint one: more than a graph may differ by.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Not changed.

    Returns
    -------
    hyperconformer.model.features.FeatureExtractor
        Of the same output, float32 too.
    """
    extractor = copy.deepcopy(extractor)
    stft = extractor.features.compute_STFT

    class Precise(type(stft)):  # type: ignore[misc]
        def forward(self, x, *recorded):
            return super().forward(x.double(), *recorded).float()

    stft.__class__, stft.window = Precise, stft.window.double()
    return extractor


def in_float64(recognizer: Recognizer) -> Recognizer:
    """A copy that computes in float64, from features of any precision.

    Two computations in float32 may differ by the sum of what each rounds.

    Arguments
    ---------
    recognizer : hyperconformer.model.recognizer.Recognizer
        Not changed.

    Returns
    -------
    hyperconformer.model.recognizer.Recognizer
    """
    recognizer = copy.deepcopy(recognizer).double()
    recognizer.register_forward_pre_hook(
        lambda _, arguments: (arguments[0].double(), *arguments[1:])
    )
    return recognizer


class TorchModel:
    """The same as :class:`OnnxModel`, in PyTorch.

    Arguments
    ---------
    modules : tuple
        Extractor and recogniser.
    model : StreamingModel or None
        None = whole utterances.
    """

    def __init__(self, modules: Any, model: Any):
        self.modules, self.model = modules, model

    def log_probs(self, samples: np.ndarray) -> np.ndarray:
        """As :meth:`OnnxModel.log_probs`."""
        return self.heads(samples)[0]

    @torch.no_grad()
    def heads(self, samples: np.ndarray) -> list[np.ndarray]:
        """As :meth:`OnnxModel.heads`."""
        extractor, recognizer = self.modules
        wav = torch.from_numpy(samples)
        if self.model is not None:
            state = self.model.init_state(1)
            (frames,), _ = self.model.feed(state, [wav], last=True)
            heads = [self.model.ctc_log_probs(frames)]
        else:
            found = recognizer(*extractor(wav[None]))
            heads, frames = [found.ctc[0]], found.encoded[0]
        if recognizer.phones:
            heads.append(recognizer.phone_log_probs(frames))
        return [head.numpy() for head in heads]


class _All:
    """Recognises with every model, and says what the first one heard."""

    def __init__(self, models, reference, tokenizer, sample_rate_hz):
        self.models, self.reference, self.tokenizer = models, reference, tokenizer
        self.sample_rate_hz = sample_rate_hz
        self.texts: list[dict[str, str]] = []
        self.seconds = dict.fromkeys(models, 0.0)
        self.differences = dict.fromkeys(models, 0.0)
        self.duration = 0.0

    def transcribe_file(self, audio):
        samples = read_audio(audio, self.sample_rate_hz).numpy()
        self.duration += len(samples) / self.sample_rate_hz
        texts, expected = {}, self.reference.heads(samples)
        for name, model in self.models.items():
            start = time.process_time()
            found = model.heads(samples)
            self.seconds[name] += time.process_time() - start
            texts[name] = self.tokenizer.decode_ids(greedy(found[0])).strip()
            shapes = [[head.shape for head in heads] for heads in (found, expected)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"{name} gives log-probabilities of {shapes[0]}, PyTorch of "
                    f"{shapes[1]}"
                )
            for ours, theirs in zip(found, expected):
                worst = np.abs(ours - theirs).max()
                # Unlike max(), this keeps NaN.
                worst = float(np.maximum(self.differences[name], worst))
                self.differences[name] = worst
        self.texts.append(texts)
        return _Text(texts[PYTORCH])


class _Said:
    """Says again what one of the models heard."""

    def __init__(self, texts, tokenizer):
        self.texts, self.tokenizer = iter(texts), tokenizer

    def transcribe_file(self, audio):
        return _Text(next(self.texts))


class _Text(NamedTuple):
    text: str


def compare(
    folder: pathlib.Path,
    files: list[str],
    modules: Any,
    model: Any,
    tokenizer: Any,
    manifest: str | pathlib.Path,
) -> Report:
    """Recognise a manifest with PyTorch and with graphs, greedily, on one thread.

    Arguments
    ---------
    folder : pathlib.Path
        Of the graphs.
    files : list of str
        The graphs.
    modules : tuple
        Extractor and recogniser.
    model : StreamingModel or None
        Made of them; None = whole utterances.
    tokenizer : sentencepiece.SentencePieceProcessor
        The model's.
    manifest : str or pathlib.Path
        As :func:`hyperconformer.evaluation.error_rates.evaluate`.

    Returns
    -------
    Report
        With a fault for each graph that differs by too much.
    """
    models: dict[str, Any] = {PYTORCH: TorchModel(modules, model)}
    models.update({name: OnnxModel(folder, name) for name in files})
    rate = modules[0].features.compute_STFT.sample_rate
    precise = precise_spectra(modules[0])
    same, recognizer = copy.copy(model), modules[1]
    if same is None:
        recognizer = in_float64(recognizer)
    else:
        same.extractor = precise  # the state of a stream is in float32
    reference = TorchModel((precise, recognizer), same)
    every = _All(models, reference, tokenizer, rate)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stats = {PYTORCH: evaluate(every, manifest)}
    finally:
        torch.set_num_threads(threads)
    for name in files:
        said = _Said([texts[name] for texts in every.texts], tokenizer)
        stats[name] = evaluate(said, manifest, progress=False)
    rows: list[Row] = []
    faults: list[str] = []
    for name in models:
        wer = summarize(stats[name]["WER"])["WER"]
        row = Row(
            name,
            every.differences[name],
            wer,
            sum(texts[name] == texts[PYTORCH] for texts in every.texts),
            every.seconds[name] / every.duration,
        )
        if name != PYTORCH:
            size, memory = (folder / name).stat().st_size, peak_memory(folder, name)
            row = row._replace(size=size, memory=memory)
            faults += _faults(row, rows[0])
        rows.append(row)
    return Report(rows, len(every.texts), faults)


def allowed_difference(pytorch: Row) -> float:
    """What log-probabilities of a graph may differ by, beside PyTorch's row."""
    return max(MAX_DIFFERENCE, pytorch.difference)


def _faults(row, pytorch):
    """Why a graph should not be used."""
    points = MAX_WER_POINTS[row.name]
    if abs(row.wer - pytorch.wer) > points:
        yield (
            f"{row.name} has {row.wer:.2f} % WER, PyTorch {pytorch.wer:.2f} %: they "
            f"may differ by {points} points"
        )
    allowed = allowed_difference(pytorch)
    if row.name == "model.onnx" and not row.difference <= allowed:
        yield (
            f"log-probabilities of {row.name} differ by {row.difference:.1e} from "
            f"PyTorch's, at most {allowed:.0e} are expected"
        )


_PEAK = """
import pathlib, re, sys
import numpy, onnxruntime
from hyperconformer.export.runtime import OnnxModel
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
before = peak()
model = OnnxModel(sys.argv[1], sys.argv[2])
rate = model.contract["sample_rate"]
model.log_probs(numpy.random.default_rng(0).normal(0, 0.1, 10 * rate).astype("f4"))
print(peak() - before)
"""


def peak_memory(folder: pathlib.Path, name: str) -> float | None:
    """What ten seconds of audio take, in a process of their own.

    Arguments
    ---------
    folder, name
        The graph.

    Returns
    -------
    float or None
        MiB; None where the system does not tell.
    """
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-c", _PEAK, str(folder), name]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout) / 1024
