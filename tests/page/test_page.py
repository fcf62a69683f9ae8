"""The page in a real browser: Debian's Chromium, which Playwright drives."""

import difflib
import functools
import http.server
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import threading

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.audio import read_audio
from hyperconformer.cli.main import main
from hyperconformer.core.words import Transcription
from hyperconformer.page.site import size_bytes
from hyperconformer.transcribe.formats import to_srt
from hyperconformer.transcribe.streaming import StreamingASR, read_pieces

HERE = pathlib.Path(__file__).parent
SPEECH = HERE.parent / "data" / "an4" / "cen6-fvap-b.wav"
MODEL = "hyperconformer-an4-streaming"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
RATE_HZ, CHUNK_MS = 16000, 640


def missing():
    """What keeps these tests from running."""
    if CHROMIUM is None:
        return "needs Chromium: apt-get install chromium"
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        return "needs Playwright: make test-page"
    if shutil.which("npm") is None:
        return "needs npm: apt-get install npm"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """The shipped model that streams, as ONNX graphs."""
    folder = pytest.importorskip("hyperconformer.export.folder")
    target = tmp_path_factory.mktemp("export") / "exported"
    return folder.export_model(MODEL, target, chunk_ms=CHUNK_MS, int8=True)


@pytest.fixture(scope="module")
def site(export, tmp_path_factory):
    """The page with the graph of 8 bits."""
    target = tmp_path_factory.mktemp("page") / "site"
    assert main(["page", str(export), str(target)]) == 0
    return target


@pytest.fixture(scope="module")
def exact_site(export, tmp_path_factory):
    """The page with the graph in float32."""
    folder = tmp_path_factory.mktemp("float32")
    exact = shutil.copytree(export, folder / "export")
    (exact / "model.int8.onnx").unlink()
    assert main(["page", str(exact), str(folder / "site")]) == 0
    return folder / "site"


class Server:
    """Serves a folder, as `python -m http.server`, and notes what is asked of it."""

    def __init__(self, folder):
        requests = self.requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format, *values):
                pass

            def parse_request(self):
                good = super().parse_request()
                requests.append((self.command, self.path))
                return good

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def server(site):
    with Server(site) as server:
        yield server


def drive(server, scenario, timeout_s=300, **values):
    """Play a scenario of driver.mjs."""
    task = {
        "scenario": scenario,
        "url": server.url,
        "chromium": CHROMIUM,
        "timeoutMs": 60_000,
        **values,
    }
    done = subprocess.run(
        ["node", "driver.mjs", json.dumps(task, default=str)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["result"]


def talk(seconds):
    """(N,) int16 samples: the recording between pauses of a second and more."""
    speech, rate = soundfile.read(SPEECH, dtype="int16")
    assert rate == RATE_HZ
    rng = np.random.default_rng(0)
    pauses = [rng.normal(0, 15, int(s * rate)).astype(np.int16) for s in (0.7, 1.3)]
    once = np.concatenate([pauses[0], speech, pauses[1]])
    return np.resize(once, math.ceil(seconds * rate / len(once)) * len(once))


@functools.cache
def load_ctc():
    """The command line's stream, with the head that the exported graphs have."""
    asr = StreamingASR.from_hparams(MODEL, chunk_ms=CHUNK_MS)
    asr.model.recognizer.transducer = None
    asr.use_search()
    return asr


def words_of(partials):
    """All final words."""
    return [word for partial in partials if partial.ended for word in partial.words]


def transcribe_graph(folder, file, samples):
    """Words of a graph in Python's ONNX Runtime."""
    from hyperconformer.export.runtime import OnnxModel

    model, stream = OnnxModel(folder, file), load_ctc().open()
    window, shift, before = (model.contract[k] for k in ("window", "shift", "before"))
    samples = np.concatenate([np.zeros(before, "f4"), samples])
    state, words = model.init_state(1), []
    for begin in range(0, len(samples), shift):
        heard = samples[begin : begin + window]
        padded = np.pad(heard, (0, window - len(heard)))[None]
        found, frames, state = model.step(padded, np.array([len(heard)]), state)
        last = len(heard) < window
        rows = torch.from_numpy(found[0, : frames[0]])
        partials = stream.take(rows, stream.state, last)
        if any(partial.ended for partial in partials):
            state = model.forget(state)
        words += words_of(partials)
        if last:
            break
    return words


def shown(words):
    """Words, and what stands below them on the page."""
    return [
        [
            word.text,
            f"{int(word.start_s // 60)}:{word.start_s % 60:05.2f} · "
            f"{round(100 * word.confidence)} %",
        ]
        for word in words
    ]


def likeness(text, other):
    """Of two texts, letter by letter, in [0, 1].

    The last bits of a float decide how it is rounded to 8 bits, and processors without
    VNNI saturate: words of 8 bits need not be the same everywhere.
    """
    one, other = text.strip(), other.strip()
    return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()


def split(shown_words):
    """Texts, times and confidences of what the page shows."""
    abouts = [re.findall(r"[\d.]+", about) for _, about in shown_words]
    return (
        [text for text, _ in shown_words],
        [60 * int(a) + float(b) for a, b, _ in abouts],
        [int(c) for _, _, c in abouts],
    )


def assert_same(found, words):
    """The page shows these words; runtimes differ in the last bits only."""
    texts, times, confidences = split(found["words"])
    wanted_texts, wanted_times, wanted_confidences = split(shown(words))
    assert texts == wanted_texts
    assert times == wanted_times
    assert np.abs(np.subtract(confidences, wanted_confidences)).max() <= 2
    assert found["srt"] == to_srt("", Transcription("", tuple(words), (), 0.0))
    assert found["text"].split() == wanted_texts


def test_the_whole_page_is_below_20_megabytes(site):
    assert size_bytes(site) < 20e6


def test_a_file_gives_the_words_of_the_command_line(exact_site, tmp_path):
    sound = tmp_path / "talk.wav"
    soundfile.write(sound, talk(20), RATE_HZ)
    with Server(exact_site) as server:
        (found,) = drive(server, "files", files=[sound])
        # The page has asked its own server for files, and sent nothing.
        assert {command for command, _ in server.requests} == {"GET"}
    words = words_of(load_ctc().partials(read_pieces(sound, RATE_HZ)))
    assert len(words) > 20
    assert_same(found, words)
    # Segments are lines.
    assert len(found["text"].splitlines()) > 2


def test_8_bits_give_the_words_of_onnx_runtime_in_python(export, server, tmp_path):
    sound = tmp_path / "talk.wav"
    soundfile.write(sound, talk(20), RATE_HZ)
    (found,) = drive(server, "files", files=[sound])
    samples = read_audio(sound, RATE_HZ).numpy()
    words = [w.text for w in transcribe_graph(export, "model.int8.onnx", samples)]
    assert len(words) > 20
    assert likeness(found["text"], " ".join(words)) > 0.9


def test_other_rates_channels_and_formats_give_the_same_words(server, tmp_path):
    files = []
    for rate, name, kind in (
        (44100, "cd.wav", "PCM_24"),
        (48000, "video.wav", "FLOAT"),
        (48000, "video.flac", "PCM_16"),
    ):
        samples = read_audio(SPEECH, rate).numpy()
        files.append(tmp_path / name)
        soundfile.write(files[-1], np.stack([samples] * 2, 1), rate, subtype=kind)
    found = drive(server, "files", files=[SPEECH, *files])
    assert len({one["text"] for one in found}) == 1
    assert likeness(found[0]["text"], "ONE FIVE TWO TWO SEVEN") > 0.9


def test_the_microphone_gives_the_words_in_time(export, server, tmp_path):
    sound = tmp_path / "talk.wav"
    samples = talk(1)
    soundfile.write(sound, samples, RATE_HZ)
    seconds = math.ceil(len(samples) / RATE_HZ)
    found = drive(server, "microphone", sound=sound, seconds=seconds)
    # The microphone has other levels than the file before the speech begins.
    words = transcribe_graph(export, "model.int8.onnx", read_audio(sound, RATE_HZ))
    assert likeness(found["text"], " ".join(word.text for word in words)) > 0.8
    # The loudest sample of the recording has -15.9 dB.
    assert -20 < found["level"] < -12
    delays = [float(d.removesuffix(" s")) for d in found["delays"] if d != "–"]
    assert len(delays) >= 2
    assert CHUNK_MS / 1000 < np.median(delays) <= 1.5 * CHUNK_MS / 1000
    # By keyboard alone: the focus moves on to Stop, and back.
    assert found["focus"] == ["stop", "microphone"]


def test_a_refused_microphone_is_explained(server):
    found = drive(server, "refused", sound=SPEECH, deny=True)
    assert found.startswith("The microphone is refused. Allow it")


def test_an_absent_microphone_is_explained(server):
    assert drive(server, "refused").startswith("There is no microphone.")


def test_files_that_cannot_be_read_are_explained(server, tmp_path):
    text, empty, broken = (tmp_path / n for n in ("a.mp3", "empty.wav", "nan.wav"))
    text.write_text("no audio")
    soundfile.write(empty, np.zeros(0), RATE_HZ)
    soundfile.write(broken, np.full(RATE_HZ, np.nan), RATE_HZ, subtype="FLOAT")
    found = drive(server, "problemOfFile", files=[text, empty, broken])
    assert found[0].startswith("a.mp3 cannot be decoded: it is no recording")
    assert found[1:] == [
        "The recording holds no samples.",
        "The recording holds samples that are no finite numbers.",
    ]


def test_a_browser_without_simd_is_told(server):
    found = drive(server, "problemAtStart", withoutSimd=True)
    assert found.startswith("This browser lacks WebAssembly SIMD.")


def change_version(model):
    contract = json.loads((model / "export.json").read_text())
    (model / "export.json").write_text(json.dumps({**contract, "version": 2}))


def cut_graph(model):
    os.truncate(model / "model.onnx", 1000)


def lose_graph(model):
    (model / "model.onnx").unlink()


def lose_a_token(model):
    lines = (model / "tokens.txt").read_text("utf-8").splitlines()
    (model / "tokens.txt").write_text("\n".join(lines[:-1]), "utf-8")


@pytest.mark.parametrize(
    "damage, message",
    [
        (change_version, "version 2; this page reads hyperconformer-onnx, version 1"),
        (cut_graph, "model.onnx cannot be loaded"),
        (lose_graph, "model/model.onnx is missing (status 404)"),
        (lose_a_token, "tokens.txt holds 29 tokens, export.json says 30"),
    ],
)
def test_a_model_that_does_not_fit_is_explained(site, tmp_path, damage, message):
    shutil.copytree(site, tmp_path / "site")
    damage(tmp_path / "site" / "model")
    with Server(tmp_path / "site") as server:
        assert message in drive(server, "problemAtStart")


def test_nothing_can_be_sent_elsewhere(server, tmp_path):
    with Server(tmp_path) as elsewhere:
        found = drive(server, "leaks", elsewhere=elsewhere.url)
    # In the page, and in the worker, which hears all that is said.
    assert found == ["TypeError", "TypeError"]
    assert elsewhere.requests == []


def test_it_fits_a_phone_and_a_desk(server, tmp_path):
    sound = tmp_path / "talk.wav"
    soundfile.write(sound, talk(30), RATE_HZ)
    folder = pathlib.Path(os.environ.get("SCREENSHOTS", tmp_path))
    screens = [
        {"width": width, "height": height, "colorScheme": scheme, "path": path}
        for width, height, scheme, path in (
            (390, 844, "light", folder / "phone.png"),
            (1280, 800, "dark", folder / "desktop.png"),
        )
    ]
    drive(server, "screenshots", file=sound, screens=screens)
    assert all(screen["path"].stat().st_size > 10_000 for screen in screens)


@pytest.mark.slow
def test_all_test_files_of_an4_give_the_words_of_the_command_line(
    exact_site, whole_an4
):
    files = sorted(whole_an4.glob("wav/an4test_clstk/*/*.wav"))
    assert len(files) == 130
    with Server(exact_site) as server:
        found = drive(server, "files", timeout_s=1800, files=files)
    for file, one in zip(files, found):
        assert_same(one, words_of(load_ctc().partials(read_pieces(file, RATE_HZ))))


@pytest.mark.slow
def test_ten_minutes_take_no_more_memory_than_two(server, tmp_path):
    sound = tmp_path / "talk.wav"
    soundfile.write(sound, talk(600), RATE_HZ)
    found = drive(server, "memory", timeout_s=900, file=sound, everyMs=2000)
    seconds, resident, model = zip(*found["samples"])
    assert seconds[-1] >= 600
    # After two minutes all buffers have been made; megabytes.
    early, late = (
        np.median([r for s, r in zip(seconds, resident) if a <= s <= b])
        for a, b in ((120, 240), (480, 600))
    )
    # To keep the state of each chunk alone would add 45 megabytes.
    assert late - early < 10, found["samples"]
    assert len({m for s, m in zip(seconds, model) if s >= 120}) == 1
