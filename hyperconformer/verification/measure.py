"""What can be measured of a model on speech: parity, levels, lengths, errors."""

import csv
import hashlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.audio import read_audio
from hyperconformer.core.extras import MissingExtraError, import_extra
from hyperconformer.core.words import Transcription
from hyperconformer.corpora import an4, librispeech
from hyperconformer.evaluation.error_rates import evaluate, list_utterances, summarize
from hyperconformer.export.check import (
    PYTORCH,
    Report,
    TorchModel,
    allowed_difference,
    compare,
)
from hyperconformer.export.folder import export_model
from hyperconformer.export.runtime import GRAPH_FILE, INT8_FILE
from hyperconformer.hub.folder import KENLM_FILE
from hyperconformer.model.chunks import chunk_config
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.transcribe.offline import ASR
from hyperconformer.transcribe.streaming import (
    StreamingASR,
    StreamingModel,
    read_pieces,
)

# ``difference`` of log-probabilities, with what is ``allowed`` where that is not
# MAX_DIFFERENCE; or ``wrong`` words of ``words``.
Result = dict[str, Any]
# In a clone of the repository only.
DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/data"
BUNDLED = {
    # Twenty utterances of its test set.
    "an4": lambda: an4.list_utterances(DATA / "an4_test20", "test"),
    # Nineteen utterances of dev-clean, each of another speaker.
    "librispeech": lambda: librispeech.list_utterances(DATA / "librispeech_dev19"),
}
BATCH = 8
# Between the utterances of the longest input.
GAP_S = 1.0


class Speech:
    """Utterances that a model is measured on.

    Arguments
    ---------
    name : str or pathlib.Path
        A manifest as for :func:`hyperconformer.evaluation.error_rates.evaluate`, or
        ``"an4"`` or ``"librispeech"``: utterances that a clone of the repository holds.
    folder : pathlib.Path
        Where files may be written.

    Raises
    ------
    FileNotFoundError
        If there is no such manifest, or no clone around the package.
    ValueError
        If an utterance cannot be used.
    """

    def __init__(self, name: str | pathlib.Path, folder: pathlib.Path):
        self.name, self.folder = str(name), folder
        if self.name not in BUNDLED:
            utterances = list_utterances(name)
        elif DATA.is_dir():
            utterances = BUNDLED[self.name]()
        else:
            raise FileNotFoundError(
                f"no such folder: {DATA}, which clones of the repository have; name a "
                "manifest by --speech"
            )
        self.rows: list[tuple[str, str, str]] = []
        for utterance in utterances:
            if utterance.fault or not (utterance.audio and utterance.text):
                why = utterance.fault or "audio or text is missing"
                raise ValueError(f"{name}: utterance {utterance.id}: {why}")
            self.rows.append((utterance.id, utterance.audio, utterance.text))
        self.manifest = self._write("speech.csv", self.rows)

    def _write(self, name, rows):
        with open(self.folder / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("ID", "wav", "wrd"), *rows])
        return self.folder / name

    @property
    def words(self) -> int:
        """How many words the transcripts have."""
        return sum(len(text.split()) for _, _, text in self.rows)

    def identity(self, rate_hz: int) -> dict[str, Any]:
        """``name``, ``utterances``, ``words``, ``sha256`` of texts and samples."""
        digest = hashlib.sha256()
        for _, audio, text in self.rows:
            digest.update(text.encode() + b"\n")
            digest.update(read_audio(audio, rate_hz).numpy().tobytes())
        return {
            "name": pathlib.Path(self.name).name,
            "utterances": len(self.rows),
            "words": self.words,
            "sha256": digest.hexdigest(),
        }

    def samples(self, rate_hz: int) -> Iterator[torch.Tensor]:
        """(N,) of each utterance."""
        for _, audio, _ in self.rows:
            yield read_audio(audio, rate_hz)

    def joined(self, rate_hz: int, seconds: float) -> pathlib.Path:
        """A manifest of all utterances, again and again, in one recording.

        Arguments
        ---------
        rate_hz : int
            Of the recording.
        seconds : float
            It becomes at least as long, whole rounds of the utterances.

        Returns
        -------
        pathlib.Path
        """
        gap = torch.zeros(int(GAP_S * rate_hz))
        pieces = [part for wav in self.samples(rate_hz) for part in (wav, gap)]
        once = torch.cat(pieces).numpy()
        rounds = math.ceil(seconds * rate_hz / len(once))
        wav = self.folder / "joined.wav"
        with soundfile.SoundFile(wav, "w", rate_hz, 1, "FLOAT") as file:
            for _ in range(rounds):
                file.write(once)
        text = " ".join(text for _ in range(rounds) for _, _, text in self.rows)
        return self._write("joined.csv", [("joined", str(wav), text)])


class _Recognizer(NamedTuple):
    """What :func:`evaluate` asks for: a tokenizer, and the text of a file."""

    tokenizer: Any
    find: Callable[[Any], str]

    def transcribe_file(self, audio):
        return Transcription(self.find(audio), (), (), 0.0)


class Subject:
    """A model, and what can be measured of it.

    A measurement raises ``ValueError`` where the model cannot do what is measured, and
    ``MissingExtraError`` where this installation cannot.

    Arguments
    ---------
    folder : pathlib.Path
        The model folder.
    speech : Speech
        What is recognised.
    chunk_ms, right_context_ms : float
        Of streams.
    longest_s : float
        Of :meth:`longest_words`.
    trusted : bool
        As :func:`hyperconformer.hub.folder.load_model`.
    compared : int, optional
        Utterances whose log-probabilities are compared in batches and streams; None =
        all.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder holds no model that runs.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        speech: Speech,
        chunk_ms: float,
        right_context_ms: float,
        longest_s: float,
        trusted: bool = False,
        compared: int | None = None,
    ):
        self.asr = ASR.from_hparams(folder, trusted=trusted)
        self.folder, self.speech, self.trusted = folder, speech, trusted
        self.chunk_ms, self.right_context_ms = chunk_ms, right_context_ms
        self.longest_s = longest_s
        self.compared = compared
        self.modules = self.asr.extractor, self.asr.recognizer
        self.rate_hz = self.asr.sample_rate_hz
        self.offline = TorchModel(self.modules, None)
        self._reports: dict[bool, Report] = {}

    def _stream(self):
        right_ms = self.right_context_ms
        return StreamingModel(*self.modules, self.chunk_ms, right_context_ms=right_ms)

    @torch.no_grad()
    def batch(self) -> Result:
        """Batches with NaN as padding, and each utterance alone."""
        extractor, recognizer = self.modules
        utterances = [
            *itertools.islice(self.speech.samples(self.rate_hz), self.compared)
        ]
        differences = []
        for begin in range(0, len(utterances), BATCH):
            batch = utterances[begin : begin + BATCH]
            counts = torch.tensor([len(samples) for samples in batch])
            wavs = pad_sequence(batch, batch_first=True, padding_value=math.nan)
            found = recognizer(*extractor(wavs, counts / wavs.shape[1]))
            for samples, ctc, frames in zip(batch, found.ctc, found.lengths):
                alone = self.offline.log_probs(samples.numpy())
                differences.append(_difference(ctc[:frames].numpy(), alone))
        return {"difference": _worst(differences)}

    @torch.no_grad()
    def stream(self) -> Result:
        """Streams of small pieces, and the whole under the same chunk rule."""
        extractor, recognizer = self.modules
        model, differences = self._stream(), []
        lengths = self.chunk_ms, None, model.frame_ms, self.right_context_ms
        for _, audio, _ in self.speech.rows[: self.compared]:
            state, frames = model.init_state(1), []
            for samples in [*read_pieces(audio, self.rate_hz), torch.zeros(0)]:
                new, state = model.feed(state, [samples], last=len(samples) == 0)
                frames.append(model.ctc_log_probs(new[0]))
            whole = extractor(read_audio(audio, self.rate_hz)[None])
            expected = recognizer(
                *whole, dynchunktrain_config=chunk_config(*lengths)
            ).ctc[0]
            got = torch.cat(frames).numpy()
            differences.append(_difference(got, expected.numpy()))
        return {"difference": _worst(differences)}

    def words(self, gain_db: float = 0.0, offset: float = 0.0) -> Result:
        """Wrong words in the default search, at another level or with an offset."""
        self._check_search()
        gain = 10 ** (gain_db / 20)

        def find(audio):
            samples = gain * read_audio(audio, self.rate_hz) + offset
            return self.asr.transcribe(samples, self.rate_hz).text

        return self._wrong(find)

    def greedy_words(self) -> Result:
        """Wrong words of the CTC head, the best token of each frame."""
        search = self.asr.search
        self.asr.use_search(GreedySearcher())
        try:
            return self._wrong(lambda audio: self.asr.transcribe_file(audio).text)
        finally:
            self.asr.use_search(search)

    def stream_words(self) -> Result:
        """Wrong words of streams, in the default search."""
        asr = StreamingASR.from_hparams(
            self.folder,
            self.chunk_ms,
            right_context_ms=self.right_context_ms,
            trusted=self.trusted,
        )
        self._check_search()

        def find(audio):
            partials = asr.partials([read_audio(audio, self.rate_hz)])
            return " ".join(partial.text for partial in partials if partial.ended)

        return self._wrong(find)

    def longest_words(self) -> Result:
        """Wrong words of one long recording, see :meth:`Speech.joined`."""
        self._check_search()
        manifest = self.speech.joined(self.rate_hz, self.longest_s)
        return self._wrong(lambda audio: self.asr.transcribe_file(audio).text, manifest)

    def graph_difference(self, name: str, streaming: bool = False) -> Result:
        """Log-probabilities of an exported graph and of PyTorch."""
        difference = self._graph(name, streaming).difference
        allowed = allowed_difference(self._graph(PYTORCH, streaming))
        return {"difference": difference, "allowed": allowed}

    def graph_words(self, name: str, streaming: bool = False) -> Result:
        """Wrong words of an exported graph, greedy."""
        words = self.speech.words
        wrong = round(self._graph(name, streaming).wer / 100 * words)
        return {"wrong": wrong, "words": words}

    def _graph(self, name, streaming):
        """A row of the comparison of the graphs with PyTorch, which is made once."""
        if streaming not in self._reports:
            model = self._stream() if streaming else None
            for package in ("onnx", "onnxruntime", "onnxscript"):
                import_extra(package, "export", "ONNX graphs")
            folder = export_model(
                self.folder,
                self.speech.folder / f"export-{streaming}",
                chunk_ms=self.chunk_ms if streaming else None,
                right_context_ms=self.right_context_ms if streaming else 0,
                int8=True,
                trusted=self.trusted,
            )
            self._reports[streaming] = compare(
                folder,
                [GRAPH_FILE, INT8_FILE],
                self.modules,
                model,
                self.asr.tokenizer,
                self.speech.manifest,
            )
        rows = {row.name: row for row in self._reports[streaming].rows}
        return rows[name]

    def _check_search(self):
        """Refuse to decode greedily where the folder has n-grams."""
        if "words" in self.asr.ngram:
            for package in ("kenlm", "pygtrie", "flashlight.lib.text"):
                import_extra(package, "lm", "the n-grams of this model")
        if (self.folder / KENLM_FILE).is_file() and not self.asr.ngram:
            raise MissingExtraError("its n-grams, in KenLM's form, need --trusted")

    def _wrong(self, find, manifest=None):
        recognizer = _Recognizer(self.asr.tokenizer, find)
        manifest = manifest or self.speech.manifest
        found = summarize(evaluate(recognizer, manifest, progress=False)["WER"])
        return {
            "wrong": int(found["num_edits"]),
            "words": int(found["num_scored_tokens"]),
        }


def _worst(differences: list[float]) -> float:
    """The largest; not a number if one is not, unlike with max()."""
    return float(np.max(differences))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest; infinite where the frames are not as many."""
    if found.shape != expected.shape:
        return math.inf
    return float(np.abs(found - expected).max())
