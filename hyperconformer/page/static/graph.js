// The streaming graph in ONNX Runtime, by the contract in export.json
// (the package's docs/deploy.md).

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { parseTokens } from "./words.js";

const FORMAT = "hyperconformer-onnx";
const VERSION = 1;
const AGAIN = "Write the site again with `hyperconformer page`.";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {
  wasm: new URL("onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};

// ONNX Runtime does not tell how much memory it has taken.
const memories = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(options) {
    super(options);
    memories.push(this);
  }
};

export function memoryBytes() {
  return memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0);
}

export class Graph {
  // Reads the folder `model/` beside this file.
  static async load() {
    const [contract, tokens, bytes] = await Promise.all([
      download("export.json").then((answer) => answer.json()),
      download("tokens.txt").then((answer) => answer.text()),
      download("model.onnx").then((answer) => answer.arrayBuffer()),
    ]);
    checkContract(contract);
    const pieces = parseTokens(tokens);
    if (pieces.length !== contract.vocab_size) {
      throw new Error(
        `tokens.txt holds ${pieces.length} tokens, export.json says ` +
          `${contract.vocab_size}. ${AGAIN}`,
      );
    }
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, {
        executionProviders: ["wasm"],
      });
    } catch (error) {
      throw new Error(`model.onnx cannot be loaded: ${error.message ?? error}. ${AGAIN}`);
    }
    checkNames("inputs", contract.inputs, session.inputNames);
    checkNames("outputs", contract.outputs, session.outputNames);
    return new Graph(session, contract, pieces);
  }

  constructor(session, contract, pieces) {
    this.session = session;
    this.contract = contract;
    this.pieces = pieces;
    this.window = new Float32Array(contract.window);
    this.reset();
  }

  // Before the first sample of a stream.
  reset() {
    this.window.fill(0);
    this.filled = this.contract.before;
    this.state = new Float32Array(this.contract.state_dim);
  }

  // The encoder begins anew; samples that wait for their chunk and the level of what
  // was heard stay.
  forget() {
    const kept = this.state.subarray(0, this.contract.kept);
    this.state = new Float32Array(this.contract.state_dim);
    this.state.set(kept);
  }

  // Takes samples and calls `found(logProbs, frames)` for each chunk they fill.
  async feed(samples, found) {
    for (let taken = 0; taken < samples.length; ) {
      const piece = samples.subarray(taken, taken + this.window.length - this.filled);
      this.window.set(piece, this.filled);
      this.filled += piece.length;
      taken += piece.length;
      if (this.filled === this.window.length) {
        found(...(await this.#run()));
      }
    }
  }

  // No sample follows: calls `found` for each chunk of what waits.
  async close(found) {
    do {
      this.window.fill(0, this.filled);
      found(...(await this.#run()));
    } while (this.filled >= this.contract.before);
    this.reset();
  }

  // Recognises a chunk, and drops its samples.
  async #run() {
    const { window, state, filled } = this;
    const results = await this.session.run({
      samples: new ort.Tensor("float32", window, [1, window.length]),
      length: new ort.Tensor("int64", [BigInt(filled)], [1]),
      state: new ort.Tensor("float32", state, [1, state.length]),
    });
    this.state = results.new_state.data;
    window.copyWithin(0, this.contract.shift);
    this.filled -= this.contract.shift;
    return [results.log_probs.data, Number(results.frames.data[0])];
  }
}

function checkContract({ format, version, kind }) {
  if (format !== FORMAT || version !== VERSION) {
    throw new Error(
      `The model has the format ${format}, version ${version}; this page reads ` +
        `${FORMAT}, version ${VERSION}. Export the model and write the site with the ` +
        "same version of hyperconformer.",
    );
  }
  if (kind !== "streaming") {
    throw new Error(
      `The model is of the kind ${kind}; this page needs one that streams: ` +
        "`hyperconformer export MODEL FOLDER --streaming`.",
    );
  }
}

function checkNames(what, wanted, got) {
  if ([...wanted].sort().join() !== [...got].sort().join()) {
    throw new Error(
      `model.onnx has the ${what} ${got.join(", ")}; export.json says ` +
        `${wanted.join(", ")}. ${AGAIN}`,
    );
  }
}

async function download(name) {
  const answer = await fetch(new URL(`model/${name}`, import.meta.url));
  if (!answer.ok) {
    throw new Error(`model/${name} is missing (status ${answer.status}). ${AGAIN}`);
  }
  return answer;
}
