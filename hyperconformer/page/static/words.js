// Log-probabilities of a CTC head to words: greedy, as the package's own
// hyperconformer/search/greedy.py and transcribe/streaming.py.

const WORD_START = "\u2581";
// Begin and end of a sentence, which no text holds.
const NO_TEXT = [1, 2];
// Silence after words that ends a segment.
const ENDPOINT_S = 1;

export class WordDecoder {
  constructor(pieces, { blank, frame_ms }) {
    this.pieces = pieces;
    this.blank = blank;
    this.frameS = frame_ms / 1000;
    this.patience = Math.ceil((1000 * ENDPOINT_S) / frame_ms);
    this.frames = 0;
    this.segment = 0;
    this.#begin();
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
      if (this.silence >= this.patience) {
        // Where nothing was said, the encoder has nothing to forget.
        ended ||= this.finished || this.rest !== "";
        this.end(words);
      }
    }
    return { words, ended };
  }

  // The segment is over: adds its last word.
  end(words = []) {
    this.#finish(words);
    this.segment++;
    this.#begin();
    return words;
  }

  // The text of the word that may still change.
  get rest() {
    return this.#text(this.tokens);
  }

  #begin() {
    // Of the word that is being spoken: {index, start, end, logProb}.
    this.tokens = [];
    this.last = this.blank;
    this.silence = 0;
    // Whether the segment has a word before that one.
    this.finished = false;
  }

  #advance(index, logProb, words) {
    this.silence = index === this.blank ? this.silence + 1 : 0;
    if (index !== this.blank && !NO_TEXT.includes(index)) {
      if (index === this.last) {
        const token = this.tokens.at(-1);
        token.end++;
        token.logProb += logProb;
      } else {
        if (this.pieces[index].startsWith(WORD_START)) {
          this.#finish(words);
        }
        this.tokens.push({ index, start: this.frames, end: this.frames + 1, logProb });
      }
    }
    this.last = index;
    this.frames++;
  }

  #finish(words) {
    this.finished ||= this.tokens.length > 0;
    // A space that is a token of its own takes no time. A model may say that a word
    // begins, and then no letter of it.
    const spelled = this.tokens.filter((token) => this.#text([token]));
    if (spelled.length) {
      const mean = spelled
        .map((token) => token.logProb / (token.end - token.start))
        .reduce((sum, score) => sum + score / spelled.length, 0);
      words.push({
        text: this.#text(spelled),
        startS: spelled[0].start * this.frameS,
        endS: spelled.at(-1).end * this.frameS,
        confidence: Math.min(1, Math.exp(mean)),
        segment: this.segment,
      });
    }
    this.tokens = [];
  }

  #text(tokens) {
    return tokens
      .map((token) => this.pieces[token.index].replaceAll(WORD_START, ""))
      .join("");
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
