// Words as text and as SubRip subtitles, as the package's own transcribe/formats.py.

// Subtitles: at most this many characters and seconds, and a new one after a pause.
const CUE_CHARACTERS = 42;
const CUE_S = 6;
const CUE_PAUSE_S = 1;

// A segment a line.
export function toText(words) {
  return groups(words, (group, word) => group[0].segment === word.segment)
    .map((group) => `${joined(group)}\n`)
    .join("");
}

export function toSrt(words) {
  return groups(words, fits)
    .map((cue, number) => {
      const times = `${clock(cue[0].startS)} --> ${clock(cue.at(-1).endS)}`;
      return `${number + 1}\n${times}\n${joined(cue)}\n\n`;
    })
    .join("");
}

// Whether a subtitle has room for one more word.
export function fits(cue, word) {
  const characters = cue.reduce((sum, other) => sum + other.text.length + 1, 0);
  return (
    characters + word.text.length <= CUE_CHARACTERS &&
    word.endS - cue[0].startS <= CUE_S &&
    word.startS - cue.at(-1).endS <= CUE_PAUSE_S
  );
}

function groups(words, belongs) {
  const found = [];
  for (const word of words) {
    if (found.length && belongs(found.at(-1), word)) {
      found.at(-1).push(word);
    } else {
      found.push([word]);
    }
  }
  return found;
}

function joined(words) {
  return words.map((word) => word.text).join(" ");
}

function clock(seconds) {
  const milliseconds = Math.round(seconds * 1000);
  const part = (unit, size, digits) =>
    String(Math.floor(milliseconds / unit) % size).padStart(digits, "0");
  const hours = part(3600000, Infinity, 2);
  return `${hours}:${part(60000, 60, 2)}:${part(1000, 60, 2)},${part(1, 1000, 3)}`;
}
