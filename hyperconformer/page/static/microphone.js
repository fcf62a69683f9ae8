// An AudioWorklet: the microphone's samples at the model's rate, in pieces.

import { Resampler } from "./resampler.js";

const PIECES_PER_SECOND = 50;

class Microphone extends AudioWorkletProcessor {
  constructor({ processorOptions: { rateHz } }) {
    super();
    this.resampler = new Resampler(Math.round(sampleRate), rateHz);
    this.piece = new Float32Array(Math.round(rateHz / PIECES_PER_SECOND));
    this.filled = 0;
    this.running = true;
    // The first message is the port of who recognises, the second says stop.
    this.port.onmessage = ({ data }) => {
      if (this.recognizer) {
        this.stop();
      } else {
        this.recognizer = data;
      }
    };
  }

  process([[samples]]) {
    if (this.running && this.recognizer && samples) {
      this.take(this.resampler.push(samples));
    }
    return this.running;
  }

  take(samples) {
    for (const sample of samples) {
      this.piece[this.filled++] = sample;
      if (this.filled === this.piece.length) {
        this.send(false);
      }
    }
  }

  send(last) {
    const samples = this.piece.slice(0, this.filled);
    this.filled = 0;
    this.port.postMessage(samples.reduce((peak, s) => Math.max(peak, Math.abs(s)), 0));
    this.recognizer.postMessage({ samples, arrived: Date.now(), last }, [samples.buffer]);
  }

  // Whoever stops is sent all that was heard.
  stop() {
    if (this.running) {
      this.running = false;
      this.take(this.resampler.flush());
      this.send(true);
    }
  }
}

registerProcessor("microphone", Microphone);
