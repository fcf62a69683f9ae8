// Samples at one rate to another, piece by piece: a windowed sinc.

// Zero crossings of the sinc on either side, and its cutoff as a part of half the lower
// rate: aliases of what is above half of that rate are below -60 dB but for the
// outermost 4 %.
const CROSSINGS = 32;
const CUTOFF = 0.95;

export class Resampler {
  constructor(fromHz, toHz) {
    const divisor = greatestCommonDivisor(fromHz, toHz);
    this.up = toHz / divisor;
    this.down = fromHz / divisor;
    const cutoff = CUTOFF * Math.min(1, toHz / fromHz);
    this.half = Math.ceil(CROSSINGS / cutoff);
    this.filters = [];
    for (let phase = 0; phase < this.up && this.up !== this.down; phase++) {
      this.filters.push(makeFilter(cutoff, this.half, phase / this.up));
    }
    // Silence before the first sample.
    this.buffer = new Float32Array(this.half - 1);
    // The next sample lies at buffer[at] plus phase / up of a sample.
    this.at = this.half - 1;
    this.phase = 0;
  }

  // All samples that no later input can change.
  push(samples) {
    if (this.up === this.down) {
      return samples;
    }
    const buffer = new Float32Array(this.buffer.length + samples.length);
    buffer.set(this.buffer);
    buffer.set(samples, this.buffer.length);
    const room = ((buffer.length - this.at) * this.up) / this.down;
    const result = new Float32Array(Math.max(0, Math.ceil(room)) + 1);
    let count = 0;
    while (this.at + this.half < buffer.length) {
      const filter = this.filters[this.phase];
      const first = this.at - this.half + 1;
      let sum = 0;
      for (let tap = 0; tap < filter.length; tap++) {
        sum += filter[tap] * buffer[first + tap];
      }
      result[count++] = sum;
      this.phase += this.down;
      this.at += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const used = this.at - this.half + 1;
    this.buffer = buffer.slice(used);
    this.at -= used;
    return result.slice(0, count);
  }

  // The rest, after which comes silence.
  flush() {
    return this.push(new Float32Array(this.up === this.down ? 0 : this.half));
  }
}

function makeFilter(cutoff, half, phase) {
  const filter = new Float32Array(2 * half);
  for (let tap = 0; tap < filter.length; tap++) {
    const x = tap - half + 1 - phase;
    const angle = Math.PI * cutoff * x;
    const sinc = angle === 0 ? 1 : Math.sin(angle) / angle;
    const turn = (Math.PI * x) / half;
    const blackman = 0.42 + 0.5 * Math.cos(turn) + 0.08 * Math.cos(2 * turn);
    filter[tap] = cutoff * sinc * blackman;
  }
  return filter;
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}
