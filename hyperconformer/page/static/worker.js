// The thread that runs the model.
//
// Takes one source at a time: {file}, a WAV file; {samples, rateHz}, a decoded
// recording; {microphone}, a port that gives {samples, arrived, last}; or "stop".
// Gives {ready}, {found}, {ended} and {failed}.

import { Graph, memoryBytes } from "./graph.js";
import { Resampler } from "./resampler.js";
import { openWav, readWav } from "./wav.js";
import { WordDecoder } from "./words.js";

const loading = Graph.load();
loading.then(
  ({ contract }) => postMessage({ ready: contract, memory: memoryBytes() }),
  (error) => postMessage({ failed: error.message }),
);

let stopped = false;
let decoder;

onmessage = async ({ data }) => {
  if (data === "stop") {
    stopped = true;
    return;
  }
  try {
    const graph = await loading;
    stopped = false;
    graph.reset();
    decoder = new WordDecoder(graph.pieces, graph.contract);
    if (data.microphone) {
      listen(graph, data.microphone);
    } else {
      await read(graph, data);
    }
  } catch (error) {
    postMessage({ failed: error.message });
  }
};

async function read(graph, { file, samples, rateHz }) {
  const wav = file && (await openWav(file));
  const pieces = file ? readWav(file, wav) : inPieces(samples, rateHz);
  const resampler = new Resampler(wav?.rateHz ?? rateHz, graph.contract.sample_rate);
  const total = file ? (wav.end - wav.begin) / (wav.bytes * wav.channels) : samples.length;
  if (!(total > 0)) {
    throw new Error("The recording holds no samples.");
  }
  let done = 0;
  for await (const piece of pieces) {
    done += piece.length;
    await advance(graph, resampler.push(piece), { done: done / total });
    if (stopped) {
      break;
    }
  }
  await advance(graph, resampler.flush(), { done: done / total });
  await close(graph);
}

// Gives the page a chance to say stop.
async function* inPieces(samples, rateHz) {
  for (let at = 0; at < samples.length; at += rateHz) {
    await new Promise((resume) => setTimeout(resume));
    yield samples.subarray(at, at + rateHz);
  }
}

function listen(graph, port) {
  let queue = Promise.resolve();
  port.onmessage = ({ data: { samples, arrived, last } }) => {
    queue = queue
      .then(() => advance(graph, samples, { arrived }))
      .then(() => last && close(graph))
      .catch((error) => {
        port.close();
        postMessage({ failed: error.message });
      });
  };
}

// `about` says when the samples came, or what part of the file has been read.
async function advance(graph, samples, about) {
  if (!samples.every(Number.isFinite)) {
    throw new Error("The recording holds samples that are no finite numbers.");
  }
  let begin = performance.now();
  await graph.feed(samples, (logProbs, frames) => {
    const words = decode(graph, logProbs, frames);
    report(words, about, performance.now() - begin);
    begin = performance.now();
  });
}

async function close(graph) {
  const found = [];
  await graph.close((...chunk) => found.push(...decode(graph, ...chunk)));
  report(decoder.end(found), {}, null);
  postMessage({ ended: true });
}

function decode(graph, logProbs, frames) {
  const { words, ended } = decoder.take(logProbs, frames);
  if (ended) {
    graph.forget();
  }
  return words;
}

function report(words, about, computingMs) {
  postMessage({
    found: words,
    rest: decoder.rest,
    heardS: decoder.frames * decoder.frameS,
    computingMs,
    memory: memoryBytes(),
    ...about,
  });
}
