// WAV files, read piece by piece: an hour needs no more memory than a second.

const PCM = 1;
const FLOAT = 3;
const EXTENSIBLE = 0xfffe;
const PIECE_S = 1;
// How a sample is read, by "format/bits"; full scale = 1.
const READERS = {
  "1/8": (view, at) => (view.getUint8(at) - 128) / 128,
  "1/16": (view, at) => view.getInt16(at, true) / 32768,
  "1/24": (view, at) =>
    ((view.getInt8(at + 2) << 16) | view.getUint16(at, true)) / 8388608,
  "1/32": (view, at) => view.getInt32(at, true) / 2147483648,
  "3/32": (view, at) => view.getFloat32(at, true),
  "3/64": (view, at) => view.getFloat64(at, true),
};

// What a WAV file holds: {rateHz, channels, bytes, begin, end, read}; null where the
// browser has to decode the file.
export async function openWav(file) {
  if ((await readText(file, 0)) !== "RIFF" || (await readText(file, 8)) !== "WAVE") {
    return null;
  }
  let format = null;
  for (let at = 12; at + 8 <= file.size; ) {
    const name = await readText(file, at);
    const size = (await readView(file, at + 4, 4)).getUint32(0, true);
    const begin = at + 8;
    if (name === "fmt ") {
      format = parseFormat(await readView(file, begin, Math.min(size, 40)));
    } else if (name === "data") {
      // Programs that write into a pipe do not know the size yet.
      const end = size === 0 || size === 0xffffffff ? file.size : begin + size;
      return format && { ...format, begin, end: Math.min(end, file.size) };
    }
    at = begin + size + (size % 2);
  }
  return null;
}

// Mono pieces of an opened file; several channels are averaged.
export async function* readWav(file, { rateHz, channels, bytes, begin, end, read }) {
  const frame = channels * bytes;
  const step = frame * rateHz * PIECE_S;
  const whole = end - ((end - begin) % frame);
  for (let at = begin; at < whole; at += step) {
    const view = await readView(file, at, Math.min(step, whole - at));
    const samples = new Float32Array(view.byteLength / frame);
    for (let i = 0; i < samples.length; i++) {
      let sum = 0;
      for (let channel = 0; channel < channels; channel++) {
        sum += read(view, i * frame + channel * bytes);
      }
      samples[i] = sum / channels;
    }
    yield samples;
  }
}

function parseFormat(view) {
  if (view.byteLength < 16) {
    return null;
  }
  let code = view.getUint16(0, true);
  if (code === EXTENSIBLE && view.byteLength >= 26) {
    code = view.getUint16(24, true);
  }
  const [channels, rateHz] = [view.getUint16(2, true), view.getUint32(4, true)];
  const bits = view.getUint16(14, true);
  const read = READERS[`${code}/${bits}`];
  const known = (code === PCM || code === FLOAT) && read && channels && rateHz;
  return known ? { rateHz, channels, bytes: bits / 8, read } : null;
}

async function readView(file, at, size) {
  return new DataView(await file.slice(at, at + size).arrayBuffer());
}

async function readText(file, at) {
  return file.slice(at, at + 4).text();
}
