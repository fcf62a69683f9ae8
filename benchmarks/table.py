"""``python -m benchmarks table``: recognisers side by side on the same WAV files.

Error rate, real-time factor, latency, memory, size and start-up time of our models in
PyTorch, ONNX and 8 bits, whole and streamed, and of peers; each in a process of its
own (:mod:`benchmarks.recognizers`), one after the other. Writes ``table.csv``,
``table.md`` and ``table.png``, and the README's table.
"""

import argparse
import csv
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
import soundfile
from speechbrain.utils.metric_stats import ErrorRateStats

from benchmarks.environment import ROOT, environment, version
from benchmarks.recognizers import CHUNK_MS, KINDS
from benchmarks.report import markdown_table, write_readme
from hyperconformer.audio import read_audio
from hyperconformer.core.extras import import_pyplot
from hyperconformer.corpora import an4, librispeech
from hyperconformer.evaluation.error_rates import interval, list_utterances, summarize
from hyperconformer.export.folder import export_model
from hyperconformer.hub.folder import find_model, list_shipped_models, load_model
from hyperconformer.transcribe.streaming import StreamingModel
from hyperconformer.verification.claims import HASHED

RATE_HZ = 16000
# Between the utterances of the long recording.
GAP_S = 1.0
WARM_UP_S = 2.0
NAME = "table"


@dataclass
class Row:
    """A recogniser on a set, with a number of threads.

    Rates are percent. ``rtf`` is seconds of computing a second of audio. Latencies are
    milliseconds: ``first_ms`` from the first sound to the first words, ``last_ms`` from
    the end of the audio to the last ones, medians over utterances. ``resident_mb`` is
    the peak of the process, ``disk_mb`` what the model's files take, ``start_s`` from
    the start of the process to the loaded model. Of times the least of ``rounds``.
    Other programs slow down all of these, but hardly ``cpu_rtf`` and ``start_cpu_s``,
    which are seconds of all processors that the process itself took.
    """

    set: str
    utterances: int
    audio_s: float
    recognizer: str
    form: str
    threads: int
    words: int
    wrong: int
    wer: float
    wer_low: float
    wer_high: float
    rtf: float
    cpu_rtf: float
    first_ms: float | None
    last_ms: float
    last_p95_ms: float
    resident_mb: float
    disk_mb: float
    start_s: float
    start_cpu_s: float
    rounds: int
    load_average: float
    version: str
    machine: str
    processor: str
    python: str
    commit: str

    @property
    def key(self):
        """What a row is of; another row of the same takes its place."""
        return self.set, self.recognizer, self.form, self.threads


FIELDS = {field.name: field.type for field in fields(Row)}


class Contender(NamedTuple):
    """What a process is told to load, and what it is called."""

    recognizer: str
    form: str
    kind: str
    place: str
    files: list[pathlib.Path]

    @property
    def disk_mb(self):
        """What its files take."""
        return sum(path.stat().st_size for path in self.files) / 1e6


class WavSet:
    """The same 16-bit WAV files for every recogniser, and what is said in them.

    Arguments
    ---------
    name : str
        Of the set.
    utterances : list of (str, str)
        Audio file and text.
    folder : pathlib.Path
        Where the WAV files go.
    """

    def __init__(self, name, utterances, folder):
        self.name, self.folder = name, folder / name
        self.folder.mkdir(parents=True)
        self.paths, self.texts, self.seconds, self.begins_s = [], [], [], []
        for number, (audio, text) in enumerate(utterances):
            self._add(f"{number:05}", read_audio(audio, RATE_HZ).numpy(), text)
        self.list = self.folder / "list.txt"
        self.list.write_text("".join(f"{path}\n" for path in self.paths))
        self.warm_up = self.folder / "warm-up.wav"
        first = soundfile.read(self.paths[0], dtype="int16")[0]
        soundfile.write(self.warm_up, first[: int(WARM_UP_S * RATE_HZ)], RATE_HZ)

    def _add(self, name, samples, text):
        path = self.folder / f"{name}.wav"
        soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
        self.paths.append(path)
        self.texts.append(spoken(text))
        self.seconds.append(len(samples) / RATE_HZ)
        self.begins_s.append(first_sound_s(samples))

    def joined(self, seconds, folder):
        """The utterances, again and again, as one recording of so many seconds."""
        gap, parts, texts, total = np.zeros(int(GAP_S * RATE_HZ), "f4"), [], [], 0
        for path, text in itertools.cycle(zip(self.paths, self.texts)):
            samples, _ = soundfile.read(path, dtype="float32")
            if parts and total + len(samples) > seconds * RATE_HZ:
                break
            parts += [samples, gap]
            texts.append(text)
            total += len(samples) + len(gap)
        file = folder / f"{self.name}-joined.wav"
        soundfile.write(file, np.concatenate(parts), RATE_HZ)
        name = f"{self.name}, {seconds / 60:g} minutes"
        return WavSet(name, [(str(file), " ".join(texts))], folder)


def spoken(text):
    """Text as it is compared: capitals, digits and apostrophes, one space between.

    Example
    -------
    >>> spoken("Don't go -- it's 5 o'clock.")
    "DON'T GO IT'S 5 O'CLOCK"
    """
    return " ".join(re.sub(r"[^\w']|_", " ", text.upper()).split())


def first_sound_s(samples, below_db=30.0, frame_s=0.01):
    """When the first frame comes that is at most so far below the loudest one.

    Example
    -------
    >>> first_sound_s(np.repeat(np.array([0.001, 0.5], "f4"), 16000))
    1.0
    """
    size = int(frame_s * RATE_HZ)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.square(frames, dtype="f8").mean(1)
    loud = power >= power.max() * 10 ** (-below_db / 10)
    return float(loud.argmax() * frame_s)


def our_contenders(model, folder):
    """A model in each of its forms; graphs are exported into the folder.

    Arguments
    ---------
    model : str or pathlib.Path
        As :func:`hyperconformer.hub.folder.find_model`.
    folder : pathlib.Path
        Where the graphs go.

    Yields
    ------
    Contender
    """
    place = find_model(model)
    name = place.name if place.name != "model" else str(model)
    files = [place / file for file in HASHED if (place / file).is_file()]
    ngrams = [path for path in files if path.name.startswith(("lm.", "words"))]
    bare = [path for path in files if path not in ngrams]
    config, _ = load_model(place, ("extractor", "recognizer"))
    search = "n-grams" if ngrams else "greedy"
    yield Contender(name, f"PyTorch, {search}", "pytorch", str(place), files)
    if ngrams:
        yield Contender(name, "PyTorch, greedy", "pytorch-greedy", str(place), bare)
    streams = f"streams of {CHUNK_MS} ms"
    lengths = {"": None}
    try:
        StreamingModel(config["extractor"], config["recognizer"], CHUNK_MS)
    except ValueError as error:
        print(f"{name} is not streamed: {error}", file=sys.stderr)
    else:
        form = f"PyTorch, {search}, {streams}"
        yield Contender(name, form, "pytorch-stream", str(place), files)
        lengths[f", {streams}"] = CHUNK_MS
    if version("onnxruntime") == "not installed":
        print("ONNX is left out: onnxruntime is not installed", file=sys.stderr)
        return
    for suffix, chunk_ms in lengths.items():
        graphs = folder / f"{name}{chunk_ms or ''}"
        export_model(place, graphs, chunk_ms=chunk_ms, int8=True)
        for kind, file, form in (
            ("onnx", "model.onnx", "ONNX"),
            ("int8", "model.int8.onnx", "ONNX, 8 bits"),
        ):
            needed = [graphs / part for part in (file, "tokens.txt", "export.json")]
            form = f"{form}, greedy{suffix}"
            yield Contender(name, form, kind, str(graphs), needed)


def peer(spec, python):
    """A peer as the command line names it: ``pocketsphinx`` or ``KIND:FOLDER``."""
    kind, _, place = spec.partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if kind.startswith("pocketsphinx"):
        code = "import pocketsphinx; print(pocketsphinx.get_model_path('en-us'))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{python} cannot import pocketsphinx")
        folder = pathlib.Path(done.stdout.strip())
        form = "streams" if kind.endswith("stream") else "whole"
        name = "pocketsphinx en-us"
    else:
        folder, form = pathlib.Path(place), kind
        name = folder.resolve().name
        if not folder.is_dir():
            raise FileNotFoundError(f"no such model folder: {place}")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Contender(name, form, kind, place, files)


class Process:
    """One run of :mod:`benchmarks.recognizers`.

    Raises
    ------
    ValueError
        If it fails, with the last line that it said.
    """

    def __init__(self, contender, wavs, threads, rounds, python):
        command = [python, "-m", "benchmarks.recognizers"]
        command += [f"{contender.kind}:{contender.place}", str(wavs.list)]
        command += ["--threads", str(threads), "--rounds", str(rounds)]
        if rounds:
            command += ["--warm-up", str(wavs.warm_up)]
        fixed = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        begin = time.perf_counter()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command,
                env={**os.environ, **fixed},
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
            ready = process.stdout.readline()
            self.start_s = time.perf_counter() - begin
            lines = process.communicate()[0].splitlines()
            if process.returncode:
                said.seek(0)
                last = (said.read().strip() or "it said nothing").splitlines()[-1]
                raise ValueError(f"{contender.recognizer}, {contender.form}: {last}")
        self.loaded = json.loads(ready)
        *found, self.facts = map(json.loads, lines)
        self.found = found


def measure(contender, wavs, threads, rounds, python=sys.executable):
    """A row of the table.

    Arguments
    ---------
    contender : Contender
        What is measured.
    wavs : WavSet
        On what.
    threads : int
        Of the process.
    rounds : int
        How often each file is recognised, and the process started.
    python : str
        The interpreter.

    Returns
    -------
    Row
    """
    run = Process(contender, wavs, threads, rounds, python)
    starts = [run]
    for _ in range(rounds - 1):
        starts.append(Process(contender, wavs, threads, 0, python))
    stats = ErrorRateStats()
    for number, (found, text) in enumerate(zip(run.found, wavs.texts)):
        stats.append([number], [spoken(found["text"]).split()], [text.split()])
    summary = summarize(stats)
    low, high = interval(stats)
    first = [
        1000 * (found["first_s"] - begin_s)
        for found, begin_s in zip(run.found, wavs.begins_s)
        if found["first_s"] is not None
    ]
    last = [1000 * (f["last_s"] - s) for f, s in zip(run.found, wavs.seconds)]
    audio_s, facts = sum(wavs.seconds), environment(threads)
    return Row(
        set=wavs.name,
        utterances=len(wavs.paths),
        audio_s=audio_s,
        recognizer=contender.recognizer,
        form=contender.form,
        threads=threads,
        words=summary["num_scored_tokens"],
        wrong=summary["num_edits"],
        wer=summary["WER"],
        wer_low=low,
        wer_high=high,
        rtf=sum(found["busy_s"] for found in run.found) / audio_s,
        cpu_rtf=sum(found["cpu_s"] for found in run.found) / audio_s,
        first_ms=statistics.median(first) if first else None,
        last_ms=statistics.median(last),
        last_p95_ms=float(np.percentile(last, 95)),
        resident_mb=run.facts["resident_mb"],
        disk_mb=contender.disk_mb,
        start_s=min(start.start_s for start in starts),
        start_cpu_s=min(start.loaded["cpu_s"] for start in starts),
        rounds=rounds,
        load_average=run.facts["load_average"],
        version=run.loaded["version"],
        **{name: facts[name] for name in ("machine", "processor", "python", "commit")},
    )


def write_rows(path, rows):
    """Write a CSV file of rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    key: f"{value:.4g}" if isinstance(value, float) else value
                    for key, value in asdict(row).items()
                }
            )


def read_rows(path):
    """Read what :func:`write_rows` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows = []
    for line in lines:
        values = {}
        for name, kind in FIELDS.items():
            text = line[name]
            values[name] = None if text == "" else text
            if text != "" and kind is not str:
                values[name] = int(text) if kind is int else float(text)
        rows.append(Row(**values))
    return rows


def markdown(rows):
    """Tables of each set and number of threads, with what was measured where."""
    parts = []
    for name, threads in sorted({(row.set, row.threads) for row in rows}):
        group = [row for row in rows if (row.set, row.threads) == (name, threads)]
        one = group[0]
        noun = "thread" if threads == 1 else "threads"
        parts.append(
            f"### {name}: {one.utterances} recordings, {one.audio_s / 60:.1f} minutes, "
            f"{threads} {noun}"
        )
        lines = [
            [
                f"{row.recognizer}, {row.form}",
                f"{row.wer:.2f} % ({row.wer_low:.2f} to {row.wer_high:.2f})",
                f"{row.rtf:.4f} ({row.cpu_rtf:.4f})",
                "" if row.first_ms is None else f"{row.first_ms:.0f}",
                f"{row.last_ms:.0f} ({row.last_p95_ms:.0f})",
                f"{row.resident_mb:.0f}",
                f"{row.disk_mb:.1f}",
                f"{row.start_s:.1f} ({row.start_cpu_s:.1f})",
                f"{row.load_average:.1f}",
            ]
            for row in group
        ]
        header = (
            "recogniser|WER (95 % interval)|real-time factor (of CPU time)|"
            "first words, ms|after the end, ms (95th percentile)|memory, MB|disk, MB|"
            "start, s (CPU time)|load"
        )
        parts.append(markdown_table(header.split("|"), lines))

    def distinct(name):
        return ", ".join(dict.fromkeys(str(getattr(row, name)) for row in rows))

    parts.append(
        f"`python -m benchmarks table`; {distinct('processor')}, "
        f"{distinct('machine')}; {distinct('version')}; Python {distinct('python')}; "
        f"commit {distinct('commit')}. Times: least of {distinct('rounds')} rounds. "
        "Load: how many programs wanted to run at once, these included; beyond the "
        "number of cores, all times but those of the CPU are too long."
    )
    return "\n\n".join(parts)


def draw(rows, path):
    """Error rate against the real-time factor, a picture for each set."""
    pyplot = import_pyplot()
    names = list(dict.fromkeys(row.set for row in rows))
    figure, grid = pyplot.subplots(
        1, len(names), figsize=(6 * len(names), 4.5), squeeze=False
    )
    threads = min(row.threads for row in rows)
    for name, axes in zip(names, grid[0]):
        for row in rows:
            if (row.set, row.threads) == (name, threads):
                axes.semilogx(row.rtf, row.wer, "o")
                label = f"{row.recognizer}, {row.form}"
                axes.annotate(label, (row.rtf, row.wer), fontsize=6)
        axes.set(
            xlabel=f"real-time factor, threads: {threads}",
            ylabel="word error rate (%)",
            title=name,
            ylim=(0, None),
        )
        axes.grid(which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_table(results, readme=None):
    """Write table, picture and the README's part from ``table.csv``.

    Arguments
    ---------
    results : pathlib.Path
        Its folder.
    readme : pathlib.Path, optional
        Whose part :data:`NAME` becomes :func:`readme_table`.
    """
    rows = read_rows(results / f"{NAME}.csv")
    text = markdown(rows)
    (results / f"{NAME}.md").write_text(f"# Recognisers\n\n{text}\n", encoding="utf-8")
    draw(rows, results / f"{NAME}.png")
    if readme is not None:
        write_readme(readme, NAME, readme_table(rows))


def readme_table(rows):
    """The README's part: what a reader asks first, of the fewest threads."""
    fewest = min(row.threads for row in rows)
    chosen = [row for row in rows if row.threads == fewest]
    header = ["recogniser", "WER", "real-time factor", "memory, MB", "disk, MB"]
    parts = []
    for name in dict.fromkeys(row.set for row in chosen):
        lines = [
            [
                f"{row.recognizer}, {row.form}",
                f"{row.wer:.2f} %",
                f"{row.cpu_rtf:.4f}",
                f"{row.resident_mb:.0f}",
                f"{row.disk_mb:.1f}",
            ]
            for row in chosen
            if row.set == name
        ]
        parts.append(f"Recognisers on {name}:\n\n{markdown_table(header, lines)}")
    processors = ", ".join(dict.fromkeys(row.machine for row in chosen))
    noun = "thread" if fewest == 1 else "threads"
    parts.append(
        f"`python -m benchmarks table`, {fewest} {noun}, {processors}; intervals, "
        "latencies and starts: [all columns](benchmarks/results/table.md)."
    )
    return "\n\n".join(parts)


def _sets(options, folder):
    """Name, utterances and models of each set that the command line names."""
    shipped, chosen = list_shipped_models(), options.model
    if options.an4:
        root = pathlib.Path(options.an4)
        ours = [name for name in shipped if "-an4" in name]
        yield "AN4 test", _usable(an4.list_utterances(root, "test")), chosen or ours
    if options.librispeech:
        split = pathlib.Path(options.librispeech)
        found = librispeech.prepare(split.parent, folder / "split", splits=[split.name])
        utterances = list_utterances(found[split.name])
        ours = [name for name in shipped if "-librispeech" in name]
        yield f"LibriSpeech {split.name}", _usable(utterances), chosen or ours
    for name in options.manifest:
        stem = pathlib.Path(name).stem
        yield stem, _usable(list_utterances(name)), chosen or shipped


def _usable(utterances):
    return [(u.audio, u.text) for u in utterances if u.audio and u.text]


def main(arguments=None):
    """Measure; writes after each row, so that an interrupted run leaves its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--an4", metavar="FOLDER", help="its test set")
    parser.add_argument("--librispeech", metavar="FOLDER/SPLIT", help="a split")
    parser.add_argument(
        "--manifest", action="append", default=[], metavar="FILE", help="other speech"
    )
    parser.add_argument(
        "--joined-s",
        type=float,
        metavar="S",
        help="also the recordings of each set joined to one so long, 3600 for an hour",
    )
    parser.add_argument("--every", type=int, default=1, help="take each n-th utterance")
    parser.add_argument(
        "--model",
        action="append",
        metavar="MODEL",
        help="of ours; by default the shipped models that are meant for the set",
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="KIND[:FOLDER]",
        help="pocketsphinx, pocketsphinx-stream, sherpa:FOLDER, onnx:FOLDER, ...",
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="FILE",
        help="interpreter of an environment that holds the peers' packages",
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--results", type=pathlib.Path, default=ROOT / "benchmarks/results"
    )
    parser.add_argument(
        "--readme", type=pathlib.Path, metavar="FILE", help="put the table there too"
    )
    parser.add_argument(
        "--graphs", type=pathlib.Path, metavar="FOLDER", help="keep the exports here"
    )
    parser.add_argument(
        "--only-peers", action="store_true", help="measure none of our models"
    )
    parser.add_argument(
        "--append",
        action="store_true",
        help="keep the rows of table.csv that are not measured again",
    )
    options = parser.parse_args(arguments)
    if not (options.an4 or options.librispeech or options.manifest):
        parser.error("name speech: --an4, --librispeech or --manifest")
    if options.rounds < 1 or options.every < 1 or min(options.threads) < 1:
        parser.error("--rounds, --every and --threads must be at least 1")
    options.results.mkdir(parents=True, exist_ok=True)
    file, rows, failed = options.results / f"{NAME}.csv", {}, 0
    if options.append and file.is_file():
        rows = {row.key: row for row in read_rows(file)}
    peers = [peer(spec, options.peer_python) for spec in options.peer]
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        exported, graphs = {}, options.graphs or folder / "graphs"
        for name, utterances, models in _sets(options, folder):
            sets = [WavSet(name, utterances[:: options.every], folder)]
            if options.joined_s:
                sets.append(sets[0].joined(options.joined_s, folder))
            models = [] if options.only_peers else models
            for model in models:
                if model not in exported:
                    exported[model] = list(our_contenders(model, graphs))
            plan = [(c, sys.executable) for m in models for c in exported[m]]
            plan += [(contender, options.peer_python) for contender in peers]
            for wavs in sets:
                for threads in options.threads:
                    for contender, python in plan:
                        try:
                            row = measure(
                                contender, wavs, threads, options.rounds, python
                            )
                        except ValueError as error:
                            print(f"LEFT OUT {error}", file=sys.stderr, flush=True)
                            failed += 1
                            continue
                        rows[row.key] = row
                        print(
                            f"{row.set}, {threads} threads, {row.recognizer}, "
                            f"{row.form}: WER {row.wer:.2f} %, rtf {row.rtf:.4f}",
                            flush=True,
                        )
                        write_rows(file, rows.values())
    if not rows:
        print("nothing was measured", file=sys.stderr)
        return 1
    write_table(options.results, options.readme)
    print((options.results / f"{NAME}.md").read_text("utf-8"), end="")
    return 1 if failed else 0
