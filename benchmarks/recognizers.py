"""One recogniser in a process of its own, for :mod:`benchmarks.table`.

``python -m benchmarks.recognizers KIND:PLACE LIST`` loads a recogniser, prints a line,
recognises the WAV files of a list (a path a line) and prints a line of JSON a file. It
imports nothing but what the recogniser needs, so that memory and start-up are its own.

Each recogniser says how it came to its words as steps: how much of the audio a step
needs, and what is known after it. A clock that waits for the audio, and for the step
before, tells when a listener would have read the words: nobody need wait for it.
"""

import argparse
import json
import math
import os
import pathlib
import re
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

# What a microphone gives at once, and what a stream is fed with.
PIECE_S = 0.02
# Graphs of whole utterances get no more at once, cut where it is quiet.
LONGEST_S, QUIET_S = 20.0, 0.1
CHUNK_MS = 640
# So much silence after words ends a segment of a stream, as in StreamingASR.
ENDPOINT_S = 1.0
# Of a graph's tokens.
BLANK, WORD_START = 0, "\u2581"


class Step(NamedTuple):
    """``text`` is all that is known when ``heard_s`` of the audio have been heard."""

    heard_s: float
    text: str


Steps = Iterator[Step]


def read(path):
    """(N,) float32 samples, and their rate."""
    import soundfile

    return soundfile.read(path, dtype="float32")


def pieces(samples, rate_hz):
    """What a microphone would give, and when it has been heard."""
    size = int(PIECE_S * rate_hz)
    for begin in range(0, len(samples), size):
        piece = samples[begin : begin + size]
        yield (begin + len(piece)) / rate_hz, piece


def stretches(samples, rate_hz):
    """Stretches of at most ``LONGEST_S``, cut where it is quiet.

    Arguments
    ---------
    samples : numpy.ndarray
        (N,) float32.
    rate_hz : int
        Their rate.

    Yields
    ------
    numpy.ndarray

    Example
    -------
    >>> import numpy as np
    >>> samples = np.ones(30_000, "f4")
    >>> samples[16_000:16_100] = 0
    >>> [len(part) for part in stretches(samples, 1000)]
    [16000, 14000]
    """
    import numpy as np

    longest, quiet = int(LONGEST_S * rate_hz), int(QUIET_S * rate_hz)
    while len(samples) > longest:
        late = samples[longest // 2 : longest]
        late = late[: len(late) // quiet * quiet].reshape(-1, quiet)
        end = longest // 2 + int(np.square(late).mean(1).argmin()) * quiet
        yield samples[:end]
        samples = samples[end:]
    yield samples


class Greedy:
    """Spells the best token of each frame, repetitions and blanks taken out.

    Arguments
    ---------
    tokens : list of str
        Each token's piece.

    Attributes
    ----------
    text : str
        All so far.

    Example
    -------
    >>> import numpy as np
    >>> greedy = Greedy(["<blk>", WORD_START + "GO", "ON"])
    >>> greedy.advance(np.eye(3)[[0, 1, 1]]), greedy.advance(np.eye(3)[[1, 0, 1, 2]])
    (False, False)
    >>> greedy.text
    'GO GOON'
    """

    def __init__(self, tokens):
        self.tokens, self.text = tokens, ""
        self.last, self.blanks, self.waits = BLANK, 0, True

    def advance(self, log_probs, patience=math.inf):
        """Take (T, V) log-probabilities.

        Arguments
        ---------
        log_probs : numpy.ndarray
            (T, V).
        patience : float
            So many blank frames after words end a segment.

        Returns
        -------
        bool
            Whether a segment has ended.
        """
        spelled = ""
        for token in log_probs.argmax(-1).tolist():
            self.blanks = self.blanks + 1 if token == BLANK else 0
            if token not in (BLANK, self.last):
                spelled, self.waits = spelled + self.tokens[token], False
            self.last = token
        self.text = (self.text + spelled.replace(WORD_START, " ")).lstrip()
        if self.waits or self.blanks < patience:
            return False
        self.waits, self.last = True, BLANK
        return True


class Pytorch:
    """A model folder in PyTorch, whole files, with the folder's search."""

    greedy = False

    def __init__(self, place, threads):
        import torch

        from hyperconformer.transcribe.offline import ASR

        torch.set_num_threads(threads)
        self.asr = ASR.from_hparams(place)
        if self.greedy:
            self.asr.use_search()
        self.version = f"torch {torch.__version__}"

    def steps(self, path) -> Steps:
        found = self.asr.transcribe_file(path)
        yield Step(found.duration_s, found.text)


class PytorchGreedy(Pytorch):
    """The same without the folder's n-grams."""

    greedy = True


class PytorchStream:
    """A model folder in PyTorch, streamed, with the folder's search."""

    def __init__(self, place, threads):
        import torch

        from hyperconformer.transcribe.streaming import StreamingASR

        torch.set_num_threads(threads)
        self.asr = StreamingASR.from_hparams(place, chunk_ms=CHUNK_MS)
        self.version = f"torch {torch.__version__}"

    def steps(self, path) -> Steps:
        samples, rate_hz = read(path)
        stream, ended = self.asr.open(), ""
        for heard_s, piece in [*pieces(samples, rate_hz), (None, None)]:
            if piece is None:
                heard_s, found = len(samples) / rate_hz, stream.close()
            else:
                found = stream.feed(piece)
            now = ""
            for partial in found:
                now = partial.text
                if partial.ended:
                    ended, now = f"{ended} {now}".strip(), ""
            if found or piece is None:
                yield Step(heard_s, f"{ended} {now}".strip())


class Onnx:
    """An exported folder in ONNX Runtime, greedy; a graph of chunks is streamed."""

    file = "model.onnx"

    def __init__(self, place, threads):
        import onnxruntime

        from hyperconformer.export.runtime import TOKENS_FILE, OnnxModel

        self.model = OnnxModel(place, self.file, threads)
        lines = pathlib.Path(place, TOKENS_FILE).read_text("utf-8").splitlines()
        self.tokens = [line.rpartition(" ")[0] for line in lines]
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def steps(self, path) -> Steps:
        samples, rate_hz = read(path)
        if self.model.contract["kind"] == "streaming":
            yield from self._stream(samples, rate_hz)
            return
        texts = []
        for part in stretches(samples, rate_hz):
            greedy = Greedy(self.tokens)
            greedy.advance(self.model.log_probs(part))
            texts.append(greedy.text)
        yield Step(len(samples) / rate_hz, " ".join(filter(None, texts)))

    def _stream(self, samples, rate_hz):
        greedy = Greedy(self.tokens)
        patience = 1000 * ENDPOINT_S / self.model.contract["frame_ms"]
        ended = lambda frames: greedy.advance(frames, patience)  # noqa: E731
        for heard, _ in self.model.chunks(samples, ended):
            yield Step(heard / rate_hz, greedy.text)


class OnnxInt8(Onnx):
    """The same with weights of 8 bits."""

    file = "model.int8.onnx"


class Pocketsphinx:
    """pocketsphinx's packaged English model, whole files."""

    def __init__(self, place, threads):
        import pocketsphinx

        self.decoder = pocketsphinx.Decoder(samprate=16000, loglevel="FATAL")
        self.version = f"pocketsphinx {_version('pocketsphinx')}"

    def steps(self, path) -> Steps:
        import soundfile

        samples, rate_hz = soundfile.read(path, dtype="int16")
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), full_utt=True)
        self.decoder.end_utt()
        yield Step(len(samples) / rate_hz, self._text())

    def _text(self):
        found = self.decoder.hyp()
        return found.hypstr if found else ""


class PocketsphinxStream(Pocketsphinx):
    """The same, streamed."""

    def steps(self, path) -> Steps:
        import soundfile

        samples, rate_hz = soundfile.read(path, dtype="int16")
        self.decoder.start_utt()
        for heard_s, piece in pieces(samples, rate_hz):
            self.decoder.process_raw(piece.tobytes())
            yield Step(heard_s, self._text())
        self.decoder.end_utt()
        yield Step(len(samples) / rate_hz, self._text())


class Sherpa:
    """A model folder of sherpa-onnx: which kind it is, its files say."""

    def __init__(self, place, threads):
        import sherpa_onnx

        kind, method, files = sherpa_model(pathlib.Path(place))
        recognizer = getattr(sherpa_onnx, f"{kind}Recognizer")
        self.recognizer = getattr(recognizer, method)(num_threads=threads, **files)
        self.streams = kind == "Online"
        # It takes such a model for one of 8 kHz: see the export's README.md.
        self.rate_hz = 8000 if method == "from_t_one_ctc" else None
        self.version = f"sherpa-onnx {_version('sherpa-onnx')}"

    def steps(self, path) -> Steps:
        samples, rate_hz = read(path)
        if self.streams:
            yield from self._stream(samples, rate_hz)
            return
        texts = []
        for part in stretches(samples, rate_hz):
            stream = self.recognizer.create_stream()
            stream.accept_waveform(rate_hz, part)
            self.recognizer.decode_stream(stream)
            texts.append(stream.result.text.strip())
        yield Step(len(samples) / rate_hz, " ".join(filter(None, texts)))

    def _stream(self, samples, rate_hz):
        import numpy as np

        said, stream = self.rate_hz or rate_hz, self.recognizer.create_stream()
        for heard_s, piece in pieces(samples, rate_hz):
            stream.accept_waveform(said, piece)
            if self._decode(stream):
                yield Step(heard_s, self.recognizer.get_result(stream).strip())
        stream.accept_waveform(said, np.zeros(int(0.66 * rate_hz), "f4"))
        stream.input_finished()
        self._decode(stream)
        text = self.recognizer.get_result(stream).strip()
        yield Step(len(samples) / rate_hz, text)

    def _decode(self, stream):
        """Whether there was something to decode."""
        ready = self.recognizer.is_ready(stream)
        while self.recognizer.is_ready(stream):
            self.recognizer.decode_stream(stream)
        return ready


def sherpa_model(folder: pathlib.Path) -> tuple[str, str, dict[str, str]]:
    """What a folder of sherpa-onnx holds, by the names of its files.

    Arguments
    ---------
    folder : pathlib.Path
        As sherpa-onnx's releases pack them, or one of ``hyperconformer export``: of a
        streaming export its ``sherpa-onnx`` is taken.

    Returns
    -------
    kind : str
        ``"Online"`` or ``"Offline"``.
    method : str
        The constructor of sherpa-onnx's recogniser.
    files : dict of str to str
        Its arguments.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is of no known kind.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model folder: {folder}")
    inner, one = folder / "sherpa-onnx", {"model": "model", "tokens": "tokens"}
    if inner.is_dir():
        return "Online", "from_t_one_ctc", _files(inner, **one)
    if (folder / "export.json").is_file():
        return "Offline", "from_omnilingual_asr_ctc", _files(folder, **one)
    names = " ".join(sorted(path.name for path in folder.iterdir()))
    streaming = "streaming" in folder.name
    kind = "Online" if streaming else "Offline"
    parts = {"encoder": "encoder", "decoder": "decoder", "tokens": "tokens"}
    if "joiner" in names:
        parts["joiner"] = "joiner"
        return kind, "from_transducer", _files(folder, **parts)
    if "preprocess" in names and "uncached_decode" in names:
        parts = {
            "preprocessor": "preprocess",
            "encoder": "encode",
            "uncached_decoder": "uncached_decode",
            "cached_decoder": "cached_decode",
            "tokens": "tokens",
        }
        return "Offline", "from_moonshine", _files(folder, **parts)
    if "encoder" in names and "decoder" in names and "whisper" in folder.name:
        return "Offline", "from_whisper", _files(folder, **parts)
    for part, online, offline in (
        ("nemo", "from_nemo_ctc", "from_nemo_ctc"),
        ("zipformer", "from_zipformer2_ctc", "from_zipformer_ctc"),
        ("sense-voice", None, "from_sense_voice"),
    ):
        method = online if streaming else offline
        if part in folder.name and method:
            return kind, method, _files(folder, **one)
    raise ValueError(
        f"{folder} is of no known kind: sherpa-onnx's names say transducer (joiner), "
        f"whisper, moonshine, nemo, zipformer or sense-voice; it holds {names}"
    )


def _files(folder, **wanted):
    """The file of each argument, by the word between the separators of its name."""
    found = {}
    for argument, word in wanted.items():
        suffix = ".txt" if argument == "tokens" else ".onnx"
        matching = [
            path
            for path in folder.glob(f"*{suffix}")
            if re.search(rf"(^|[-_.]){word}([-_.]|$)", path.stem)
        ]
        if not matching:
            raise ValueError(f"{folder} lacks its {word}{suffix}")
        # Where there are forms of 8 bits too, they have longer names.
        found[argument] = str(min(matching, key=lambda path: (len(path.name), path)))
    return found


def _version(package):
    from importlib import metadata

    return metadata.version(package)


KINDS: dict[str, Any] = {
    "pytorch": Pytorch,
    "pytorch-greedy": PytorchGreedy,
    "pytorch-stream": PytorchStream,
    "onnx": Onnx,
    "int8": OnnxInt8,
    "pocketsphinx": Pocketsphinx,
    "pocketsphinx-stream": PocketsphinxStream,
    "sherpa": Sherpa,
}


def timed(steps: Steps) -> dict[str, Any]:
    """Text and times of one file.

    Arguments
    ---------
    steps : iterator of Step
        Each is computed when it is asked for.

    Returns
    -------
    dict
        ``text``; ``busy_s``, the seconds of computing, and ``cpu_s``, those of all
        processors; ``first_s`` and ``last_s``, when a listener read the first words and
        all of them, from the begin of the audio.

    Example
    -------
    >>> found = timed(iter([Step(1.0, ""), Step(2.0, "GO"), Step(3.0, "GO UP")]))
    >>> found["text"], round(found["first_s"], 2), round(found["last_s"], 2)
    ('GO UP', 2.0, 3.0)
    """
    clock_s = busy_s = 0.0
    first_s, text, cpu_begin = None, "", time.process_time()
    begin = time.perf_counter()
    for step in steps:
        seconds = time.perf_counter() - begin
        busy_s += seconds
        # A step begins when its audio has been heard and the one before has ended.
        clock_s, text = max(clock_s, step.heard_s) + seconds, step.text
        if text and first_s is None:
            first_s = clock_s
        begin = time.perf_counter()
    cpu_s = time.process_time() - cpu_begin
    times = {"busy_s": busy_s, "cpu_s": cpu_s, "first_s": first_s, "last_s": clock_s}
    return {"text": text, **times}


def resident_mb():
    """The most that this process has had in memory."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        # Linux counts what the process that started this one had as getrusage's peak.
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def main(arguments=None):
    """Recognise a list; prints what :mod:`benchmarks.table` reads."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recognizers", description=__doc__
    )
    parser.add_argument("recognizer", metavar="KIND:PLACE", help=", ".join(KINDS))
    parser.add_argument("list", type=pathlib.Path, help="WAV files, a path a line")
    parser.add_argument("--warm-up", metavar="WAV", help="recognised first, untimed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="0 = only load")
    options = parser.parse_args(arguments)
    kind, _, place = options.recognizer.partition(":")
    if kind not in KINDS:
        parser.error(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    recognizer = KINDS[kind](place, options.threads)
    loaded = {"version": recognizer.version, "cpu_s": time.process_time()}
    print(json.dumps(loaded), flush=True)
    paths = options.list.read_text("utf-8").splitlines()
    if options.warm_up:
        timed(recognizer.steps(options.warm_up))  # The first call of all allocates.
    for path in paths:
        rounds = [timed(recognizer.steps(path)) for _ in range(options.rounds)]
        if rounds:
            print(json.dumps(_best(rounds)), flush=True)
    load = os.getloadavg()[0]
    print(json.dumps({"resident_mb": resident_mb(), "load_average": load}), flush=True)


def _best(rounds):
    """The text, and of each time the least: others have slowed down the rest."""
    best = {"text": rounds[-1]["text"]}
    for name in ("busy_s", "cpu_s", "first_s", "last_s"):
        times = [found[name] for found in rounds if found[name] is not None]
        best[name] = min(times, default=None)
    return best


if __name__ == "__main__":
    main()
