// Log-probabilities of a CTC head to words: greedy, as the package's own
// hyperconformer/search/streaming.py and transcribe/streaming.py.

const WORD_START = "\u2581";
const CONTROL = new Set(["<s>", "</s>", "<unk>"]);
// Silence after words that ends a segment.
const ENDPOINT_S = 1;

export class WordDecoder {
  constructor(pieces, { blank, frame_ms }) {
    this.pieces = pieces;
    this.blank = blank;
    this.frameS = frame_ms / 1000;
    this.patience = Math.ceil(ENDPOINT_S / this.frameS);
    this.frames = 0;
    this.last = blank;
    // Of the word that is being spoken: {index, start, end, logProb}.
    this.tokens = [];
    this.segment = 0;
  }

  // Takes `frames` rows of log-probabilities, one after another.
  // Gives the words that are final now, and whether a segment has ended.
  take(logProbs, frames) {
    const width = this.pieces.length;
    const words = [];
    let ended = false;
    for (let frame = 0; frame < frames; frame++) {
      const row = logProbs.subarray(frame * width, (frame + 1) * width);
      let index = 0;
      for (let i = 1; i < width; i++) {
        if (row[i] > row[index]) {
          index = i;
        }
      }
      this.#advance(index, row[index], words);
      if (this.tokens.length && this.frames - this.tokens.at(-1).end >= this.patience) {
        this.end(words);
        ended = true;
      }
    }
    return { words, ended };
  }

  // The segment is over: adds its last word.
  end(words = []) {
    this.#finish(words);
    this.last = this.blank;
    this.segment++;
    return words;
  }

  // The text of the word that may still change.
  get rest() {
    return this.#text(this.tokens);
  }

  #advance(index, logProb, words) {
    if (index !== this.blank && index === this.last) {
      const token = this.tokens.at(-1);
      token.end++;
      token.logProb += logProb;
    } else if (index !== this.blank) {
      if (this.pieces[index].startsWith(WORD_START)) {
        this.#finish(words);
      }
      this.tokens.push({ index, start: this.frames, end: this.frames + 1, logProb });
    }
    this.last = index;
    this.frames++;
  }

  #finish(words) {
    const text = this.#text(this.tokens);
    // A model may say that a word begins, and then no letter of it.
    if (text) {
      const mean = this.tokens
        .map((token) => token.logProb / (token.end - token.start))
        .reduce((sum, score) => sum + score / this.tokens.length, 0);
      words.push({
        text,
        startS: this.tokens[0].start * this.frameS,
        endS: this.tokens.at(-1).end * this.frameS,
        confidence: Math.exp(mean),
        segment: this.segment,
      });
    }
    this.tokens = [];
  }

  #text(tokens) {
    return tokens
      .map((token) => this.pieces[token.index])
      .filter((piece) => !CONTROL.has(piece))
      .join("")
      .replaceAll(WORD_START, " ")
      .trim();
  }
}

// The pieces in `tokens.txt`, by their numbers.
export function parseTokens(text) {
  const pieces = [];
  for (const line of text.split("\n").filter(Boolean)) {
    const space = line.lastIndexOf(" ");
    pieces[Number(line.slice(space + 1))] = line.slice(0, space);
  }
  return pieces;
}
