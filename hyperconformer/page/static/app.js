// What the page shows, and where its sound comes from.

import { fits, toSrt, toText } from "./formats.js";
import { openWav } from "./wav.js";

// An hour of speech must not fill the page: older lines are in the saved files only.
const SHOWN_LINES = 200;
const UNSURE = 0.6;
// A device that is too slow never catches up.
const MAX_DELAY_MS = 30_000;
const QUIET_DB = -60;
// A function of WebAssembly that counts the bits of a vector.
const SIMD = [
  [0, 97, 115, 109, 1, 0, 0, 0],
  [1, 5, 1, 96, 0, 1, 123],
  [3, 2, 1, 0],
  [10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
].flat();

const element = Object.fromEntries(
  [...document.querySelectorAll("[id]")].map((found) => [found.id, found]),
);

let contract;
let worker;
let words = [];
let cue = [];
let name = "microphone";
// What ends the running source, null where none runs.
let end = null;

function say(text) {
  element.status.textContent = text;
}

function complain(text) {
  element.problem.textContent = text;
  element.problem.hidden = !text;
}

function start() {
  const wasm = typeof WebAssembly === "object";
  if (!wasm || !WebAssembly.validate(new Uint8Array(SIMD))) {
    say("The model cannot run here.");
    complain(
      "This browser lacks WebAssembly SIMD. Firefox 89, Chrome 91, Safari 16.4 and " +
        "newer ones have it.",
    );
    return;
  }
  say("Loading the model…");
  // A worker made of a blob is bound to the page's policy; one of a URL is not.
  const url = JSON.stringify(new URL("worker.js", import.meta.url));
  const code = new Blob([`import ${url};`], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(code), { type: "module" });
  worker.onmessage = ({ data }) => receive(data);
  worker.onerror = ({ message }) =>
    fail(`The thread of the model has stopped: ${message ?? "it cannot be loaded"}`);
}

function receive(data) {
  if (data.ready) {
    contract = data.ready;
    showMemory(data.memory);
    setRunning(null);
    say("Ready.");
  } else if (data.found) {
    show(data);
  } else if (data.ended) {
    finish(`Done: ${words.length} words in ${clock(words.at(-1)?.endS ?? 0)}.`);
  } else {
    fail(data.failed);
  }
}

// A source runs, which `stop` ends, or none does.
function setRunning(stop) {
  const focused = document.activeElement;
  end = stop;
  element.microphone.disabled = element.choose.disabled = !contract || end !== null;
  element.stop.disabled = end === null;
  element["save-txt"].disabled = element["save-srt"].disabled = words.length === 0;
  // A button that is disabled loses the focus.
  if (focused?.disabled) {
    (end === null ? element[focused.dataset.next ?? "choose"] : element.stop).focus();
  }
}

function begin(source, stop) {
  complain("");
  words = [];
  cue = [];
  element.lines.replaceChildren();
  element.earlier.hidden = true;
  element.rest.textContent = "";
  element.delay.textContent = element.speed.textContent = "–";
  element.heard.textContent = clock(0);
  element.stop.dataset.next = source;
  setRunning(stop);
}

function finish(text) {
  setRunning(null);
  setLevel(0);
  element.progress.hidden = true;
  say(text);
}

function fail(text) {
  end?.();
  finish(contract ? "Ready." : "The model cannot run here.");
  complain(text);
}

// ---- sources ----

async function listen() {
  begin("microphone", () => {});
  name = "microphone";
  let context;
  let stream;
  try {
    if (!navigator.mediaDevices || !globalThis.AudioWorkletNode) {
      throw new Error(
        "The microphone is only given to pages from https:// or http://localhost.",
      );
    }
    // Before the microphone, so that its first samples are heard.
    context = new AudioContext();
    await context.audioWorklet.addModule(new URL("microphone.js", import.meta.url));
    // The model hears what the training data held: the sound as it is.
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
    });
    connect(context, stream);
    await context.resume();
    say("Listening.");
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    end = null;
    fail(explain(error));
  }
}

function connect(context, stream) {
  const { port1, port2 } = new MessageChannel();
  const node = new AudioWorkletNode(context, "microphone", {
    numberOfOutputs: 0,
    channelCount: 1,
    channelCountMode: "explicit",
    processorOptions: { rateHz: contract.sample_rate },
  });
  worker.postMessage({ microphone: port2 }, [port2]);
  node.port.postMessage(port1, [port1]);
  node.port.onmessage = ({ data: peak }) => setLevel(peak);
  const [track] = stream.getAudioTracks();
  track.onended = () => {
    complain("The microphone was taken away.");
    end?.();
  };
  context.createMediaStreamSource(stream).connect(node);
  setRunning(() => {
    end = () => {};
    node.port.postMessage("stop");
    track.stop();
    setTimeout(() => context.close(), 1000);
  });
}

function explain(error) {
  const messages = {
    NotAllowedError:
      "The microphone is refused. Allow it in the browser's settings for this page, " +
      "or choose a file.",
    NotFoundError: "There is no microphone. Plug one in, or choose a file.",
    NotReadableError: "The microphone cannot be read: another program may hold it.",
  };
  return messages[error.name] ?? error.message;
}

async function read(file) {
  begin("choose", () => worker.postMessage("stop"));
  name = file.name;
  say(`Reading ${name}…`);
  element.progress.value = 0;
  element.progress.hidden = false;
  try {
    if (await openWav(file)) {
      worker.postMessage({ file });
    } else {
      const samples = await decode(file);
      const rateHz = contract.sample_rate;
      worker.postMessage({ samples, rateHz }, [samples.buffer]);
    }
  } catch (error) {
    end = null;
    fail(error.message);
  }
}

// All samples of a file that the browser decodes and resamples, mono.
async function decode(file) {
  const context = new OfflineAudioContext(1, 1, contract.sample_rate);
  let audio;
  try {
    audio = await context.decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(
      `${file.name} cannot be decoded: it is no recording, is damaged, or this ` +
        "browser does not know its format. WAV, FLAC and MP3 are known everywhere.",
    );
  }
  const mono = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel++) {
    const samples = audio.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) {
      mono[i] += samples[i] / audio.numberOfChannels;
    }
  }
  return mono;
}

// ---- what is shown ----

function show({ found, rest, heardS, computingMs, memory, arrived, done }) {
  const atEnd = element.box.scrollHeight - element.box.scrollTop - 10;
  const follow = atEnd < element.box.clientHeight;
  found.forEach(addWord);
  element.rest.textContent = rest;
  element.heard.textContent = clock(heardS);
  showMemory(memory);
  if (follow) {
    element.box.scrollTop = element.box.scrollHeight;
  }
  if (arrived !== undefined) {
    const delayMs = contract.latency_ms + Date.now() - arrived;
    element.delay.textContent = `${(delayMs / 1000).toFixed(2)} s`;
    if (delayMs > MAX_DELAY_MS) {
      complain("This device is too slow for the model: the words come too late.");
      end?.();
    }
  }
  if (done !== undefined) {
    element.progress.value = done;
  }
  if (computingMs !== null) {
    const times = contract.chunk_ms / computingMs;
    element.speed.textContent = `${times.toFixed(0)} × real time`;
  }
}

function addWord(word) {
  words.push(word);
  if (!cue.length || !fits(cue, word)) {
    cue = [];
    const line = document.createElement("p");
    line.className = "line";
    element.lines.append(line);
    if (element.lines.childElementCount > SHOWN_LINES) {
      element.lines.firstElementChild.remove();
      element.earlier.hidden = false;
    }
  }
  cue.push(word);
  const shown = document.createElement("span");
  shown.className = "word";
  const text = document.createElement("span");
  text.className = word.confidence < UNSURE ? "unsure" : "";
  text.textContent = word.text;
  const about = document.createElement("small");
  about.setAttribute("aria-hidden", "true");
  about.textContent = `${clock(word.startS, 2)} · ${Math.round(100 * word.confidence)} %`;
  // The space parts the words for who hears or copies them.
  shown.append(text, " ", about);
  element.lines.lastElementChild.append(shown);
}

function showMemory(bytes) {
  element.memory.textContent = `${Math.round(bytes / 1e6)} MB`;
}

function setLevel(peak) {
  const decibels = Math.max(QUIET_DB, 20 * Math.log10(peak));
  element.level.value = decibels;
  element.level.textContent = `${Math.round(decibels)} dB`;
}

function clock(seconds, digits = 0) {
  const scale = 10 ** digits;
  const whole = Math.floor(seconds * scale + 1e-6);
  const minutes = Math.floor(whole / scale / 60);
  const hours = Math.floor(minutes / 60);
  const rest = (whole / scale - 60 * minutes).toFixed(digits);
  const padded = rest.padStart(digits ? digits + 3 : 2, "0");
  const shown = hours ? String(minutes % 60).padStart(2, "0") : minutes;
  return `${hours ? `${hours}:` : ""}${shown}:${padded}`;
}

function save(text, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = `${name.replace(/\.[^.]*$/, "")}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

element.microphone.onclick = listen;
element.choose.onclick = () => element.file.click();
element.file.onchange = () => {
  const [file] = element.file.files;
  element.file.value = "";
  if (file) {
    read(file);
  }
};
element.stop.onclick = () => end?.();
element["save-txt"].onclick = () => save(toText(words), "txt");
element["save-srt"].onclick = () => save(toSrt(words), "srt");
start();
