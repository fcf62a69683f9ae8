"""Modules of the page that need no browser, in Node."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.core.words import Transcription, Word
from hyperconformer.export.runtime import OnnxModel
from hyperconformer.page.site import STATIC
from hyperconformer.search.alignment import spell_words
from hyperconformer.search.greedy import GreedySearch
from hyperconformer.transcribe.formats import to_srt

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None, reason="needs Node.js: apt-get install nodejs"
)


def run(code, **values):
    """What ``print`` in the code was given; values are constants of it."""
    lines = [
        f"import * as {path.stem} from {json.dumps(path.as_uri())};"
        for path in sorted(STATIC.glob("*.js"))
        if path.stem in ("resampler", "wav", "words", "formats")
    ]
    lines += [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
    lines += ["const print = (value) => console.log(JSON.stringify(value));", code]
    done = subprocess.run(
        ["node", "--input-type=module"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RESAMPLE = """
const input = Float32Array.from({ length: rate }, (_, n) =>
  Math.sin((2 * Math.PI * tone * n) / rate));
const resampler = new resampler_class(rate, 16000);
const output = [];
for (let at = 0; at < input.length; at += piece) {
  output.push(...resampler.push(input.subarray(at, at + piece)));
}
output.push(...resampler.flush());
print(output);
""".replace("resampler_class", "globalThis.Class")


def resample(rate, tone, piece=128):
    code = "globalThis.Class = resampler.Resampler;{" + RESAMPLE + "}"
    return np.array(run(code, rate=rate, tone=tone, piece=piece))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_a_tone_keeps_its_shape(rate):
    found = resample(rate, 1000)
    assert len(found) == 16000
    wanted = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    inner = slice(500, -500)  # Before and after the tone is silence.
    assert np.abs(found - wanted)[inner].max() < 1e-3


def test_what_the_rate_cannot_hold_is_gone():
    assert np.abs(resample(48000, 9000))[500:-500].max() < 1e-3


def test_pieces_do_not_matter():
    assert np.array_equal(resample(44100, 700, 128), resample(44100, 700, 44100))


READ = """
import { openAsBlob } from "node:fs";
const file = await openAsBlob(path);
const opened = await wav.openWav(file);
const samples = [];
if (opened) {
  for await (const piece of wav.readWav(file, opened)) {
    samples.push(...piece);
  }
}
print(opened && [opened.rateHz, samples]);
"""


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
def test_wav_files_are_read_as_soundfile_reads_them(tmp_path, kind, form):
    path = tmp_path / "a.wav"
    sound = np.random.default_rng(0).uniform(-1, 1, (20000, 2))
    soundfile.write(path, sound, 8000, subtype=kind, format=form)
    rate, samples = run(READ, path=str(path))
    wanted, _ = soundfile.read(path, dtype="float64")
    assert rate == 8000
    assert np.abs(np.array(samples) - wanted.mean(1)).max() < 1e-6


def test_a_wav_file_of_unknown_length_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full(1000, 0.5), 16000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert run(READ, path=str(path)) == [16000, [0.5] * 1000]


@pytest.mark.parametrize("kind, form", [("PCM_16", "FLAC"), ("MS_ADPCM", "WAV")])
def test_other_files_are_left_to_the_browser(tmp_path, kind, form):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(2000), 16000, subtype=kind, format=form)
    assert run(READ, path=str(path)) is None


PIECES = ["<blk>", "<s>", "</s>", "\u2581", "\u2581A", "B", "C"]
DECODE = """
const decoder = new words.WordDecoder(pieces, { blank: 0, frame_ms: 40 });
const found = [];
for (const chunk of chunks) {
  const flat = Float32Array.from(chunk.flat());
  found.push({ ...decoder.take(flat, chunk.length), rest: decoder.rest });
}
print([...found, decoder.end()]);
"""


def spoken(indices):
    """(T, V) log-probabilities of which these are the best."""
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(0.01, 0.1, (len(indices), len(PIECES)))
    probabilities[np.arange(len(indices)), indices] = rng.uniform(1, 2, len(indices))
    return np.log(probabilities / probabilities.sum(1, keepdims=True))


class Tokenizer:
    """As far as words are spelled by it."""

    id_to_piece = staticmethod(PIECES.__getitem__)


def test_words_are_those_of_the_greedy_search():
    """Held tokens, a space of its own, control tokens, a word over two chunks."""
    indices = [0, 4, 4, 5, 0, 5, 3, 3, 0, 6, 1, 6, 6, 0, 3, 0, 4, 2, 4, 0]
    scores = spoken(indices)
    first, second, last = run(
        DECODE, pieces=PIECES, chunks=[scores[:5].tolist(), scores[5:].tolist()]
    )
    assert (first["words"], first["rest"]) == ([], "AB")
    search = GreedySearch(Tokenizer())
    search.advance(torch.from_numpy(scores))
    wanted = spell_words(search.tokens, Tokenizer(), 0.04)
    found = [*second["words"], *last]
    assert [word["text"] for word in found] == ["ABB", "CC", "A", "A"]
    assert found == [
        {
            "text": word.text,
            "startS": pytest.approx(word.start_s),
            "endS": pytest.approx(word.end_s),
            "confidence": pytest.approx(word.confidence, rel=1e-5),
            "segment": 0,
        }
        for word in wanted
    ]


def test_a_second_of_silence_ends_a_segment():
    indices = [4, *[0] * 24, 5, *[0] * 25, 5]
    first, last = run(DECODE, pieces=PIECES, chunks=[spoken(indices).tolist()])
    assert first["ended"] and first["rest"] == "B"
    assert [word["text"] for word in first["words"]] == ["AB"]
    assert [(word["text"], word["segment"]) for word in last] == [("B", 1)]


def test_silence_without_words_ends_no_segment():
    indices = [0] * 30 + [3] + [0] * 30 + [4]
    first, last = run(DECODE, pieces=PIECES, chunks=[spoken(indices).tolist()])
    assert not first["ended"] and first["words"] == []
    assert [word["text"] for word in last] == ["A"]


def test_subtitles_are_those_of_the_command_line():
    rng = np.random.default_rng(2)
    said, now = [], 3590.0
    for _ in range(60):
        now += rng.choice([0.1, 0.4, 1.3])
        said.append(Word("W" * int(rng.integers(1, 12)), now, now + 0.3, 0.5))
        now += 0.3
    given = [
        {
            "text": word.text,
            "startS": word.start_s,
            "endS": word.end_s,
            "segment": number // 20,
        }
        for number, word in enumerate(said)
    ]
    srt, text = run("print([formats.toSrt(said), formats.toText(said)]);", said=given)
    assert srt == to_srt("", Transcription("", tuple(said), (), now))
    lines = [" ".join(w.text for w in said[a : a + 20]) for a in (0, 20, 40)]
    assert text.splitlines() == lines


STREAM = """
globalThis.WebAssembly.Memory ??= class {};
const { Graph } = await import(graph);
const asked = [];
const session = {
  run: async ({ samples, length, state }) => {
    asked.push([[...samples.data], Number(length.data[0]), state.data[0]]);
    const data = Float32Array.of(state.data[0] + 1);
    return { new_state: { data }, log_probs: { data: [] }, frames: { data: [1n] } };
  },
};
const stream = new Graph(session, contract, []);
let chunks = 0;
for (const piece of pieces) {
  await stream.feed(Float32Array.from(piece), () => chunks++);
}
await stream.close(() => chunks++);
print({ asked, chunks, filled: stream.filled, state: [...stream.state] });
"""
ORT = """
export const env = { wasm: {} };
export class Tensor {
  constructor(type, data) {
    this.data = data.slice();
  }
}
"""


@pytest.mark.parametrize("samples", [0, 9, 15, 16, 31])
@pytest.mark.parametrize("right", [0, 7])
def test_a_stream_asks_for_what_the_runtime_of_python_asks_for(
    tmp_path, monkeypatch, samples, right
):
    """To its last sample, which the right context of a chunk holds at first."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/ort.wasm.bundle.min.mjs").write_text(ORT)
    for name in ("graph.js", "words.js"):
        shutil.copy(STATIC / name, tmp_path)
    shift, before = 5, 3
    contract = {"shift": shift, "before": before, "state_dim": 1, "kept": 0}
    contract["window"] = shift + before + 1 + right
    sound = np.arange(1, samples + 1, dtype="f4")
    model, expected = object.__new__(OnnxModel), []
    model.contract = contract

    def step(samples, length, state):
        expected.append([samples[0].tolist(), int(length[0]), float(state[0, 0])])
        return np.zeros((1, 1, 1), "f4"), np.array([1]), state + 1

    monkeypatch.setattr(model, "step", step, raising=False)
    count = len(list(model.chunks(sound)))
    pieces = [part.tolist() for part in np.array_split(sound, 3)]
    graph = (tmp_path / "graph.js").as_uri()
    found = run(STREAM, graph=graph, contract=contract, pieces=pieces)
    assert found == {
        "asked": expected,
        "chunks": count,
        "filled": before,
        "state": [0],
    }
