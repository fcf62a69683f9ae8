#!/usr/bin/env python3
"""Words of streams: how many are wrong, and how often a shown one changes.

``python recipes/check_streams.py AN4_FOLDER --model hyperconformer-an4-streaming``
``python recipes/check_streams.py LIBRISPEECH/dev-clean``

decodes every utterance as a stream of its own: greedily, by the transducer if there is
one, greedily by CTC, and with a CTC beam, without and with the n-grams of ``--arpa``.

After each chunk, the text of the last one is compared with the new one. A word changes
that another one replaces, or none; growing letters are counted apart. Shares are of the
words in the end (the "unstable partial word ratio" of Shangguan et al., "Analyzing the
Quality and Stability of a Streaming End-to-End On-Device Speech Recognizer",
arXiv:2006.01416). A word is final some seconds after its end, counted in the stream's
time; what the end of the stream makes final waits no longer than that.
"""

import statistics
import time

import torch
from check_inference import RATE_HZ, error_rate, read_split, speech_parser

from hyperconformer.corpora.an4 import choose_valid_speakers, list_utterances
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.search.transducer import TransducerSearcher
from hyperconformer.transcribe.streaming import StreamingASR


def listen(asr, samples):
    """A stream's words, what its partial results changed, and when words were final."""
    stream, step = asr.open(), asr.model.sample_rate_hz // 50
    words, changed, grown, delays = [], 0, 0, []
    shown, final, heard = [], 0, 0
    for piece in [*samples.split(step), None]:
        heard += 0 if piece is None else len(piece)
        for partial in stream.close() if piece is None else stream.feed(piece):
            now = partial.text.split()
            for place, word in enumerate(shown):
                new = now[place] if place < len(now) else ""
                longer = place == len(shown) - 1 and new.startswith(word)
                grown += longer and new != word
                changed += not longer and new != word
            new_final = partial.words[final:]
            delays += [heard / asr.model.sample_rate_hz - w.end_s for w in new_final]
            shown, final = now, len(partial.words)
            if partial.ended:
                words += now
                shown, final = [], 0
    return words, changed, grown, delays


def check(name, asr, utterances):
    """Print a line on a way of decoding."""
    begin = time.process_time()
    results = [listen(asr, samples) for _, samples in utterances]
    seconds = time.process_time() - begin
    words, changed, grown, delays = zip(*results)
    rate = error_rate([" ".join(w) for w in words], [text for text, _ in utterances])
    count = sum(map(len, words))
    delay = statistics.mean(d for each in delays for d in each)
    duration = sum(len(samples) for _, samples in utterances) / RATE_HZ
    print(
        f"{name}: WER {rate:.2f} %; of {count} words {sum(changed)} changes "
        f"({100 * sum(changed) / count:.2f} %), {sum(grown)} grew "
        f"({100 * sum(grown) / count:.1f} %); final {delay:.2f} s after their end; "
        f"{seconds / duration:.4f} s of computing per second of audio",
        flush=True,
    )


def main():
    """Measure what the command line asks for."""
    parser = speech_parser(__doc__.splitlines()[0])
    parser.add_argument("--chunk-ms", type=float, nargs="+", default=[640])
    parser.add_argument(
        "--right-context-ms",
        type=float,
        nargs="+",
        default=[0],
        help="one for all chunks, or one for each",
    )
    parser.add_argument("--searches", nargs="+", help="only those with such names")
    parser.add_argument("--arpa", help="word n-grams")
    parser.add_argument(
        "--write-arpa",
        metavar="FILE",
        help="only write a trigram of the training transcripts without those of the "
        "development speakers",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="LM,BONUS",
        default=["0.4,0.5"],
        help="of the n-grams and for each word; default: those of hyperconformer-an4",
    )
    options = parser.parse_args()
    if options.write_arpa:
        train = list_utterances(options.folder, "train")
        valid = choose_valid_speakers(sorted({u.speaker for u in train}))
        texts = [u.text for u in train if u.speaker not in valid]
        return print(f"{train_arpa(texts, options.write_arpa)}: {len(texts)} texts")
    torch.set_num_threads(1)
    utterances = read_split(options.folder, options.split)
    chunks, rights = options.chunk_ms, options.right_context_ms
    if len(rights) == 1:
        rights = rights * len(chunks)
    for chunk_ms, right_ms in zip(chunks, rights, strict=True):
        asr = StreamingASR.from_hparams(
            options.model, chunk_ms, right_context_ms=right_ms
        )
        print(f"chunks of {chunk_ms:g} ms, right context {right_ms:g} ms", flush=True)
        check_all(asr, utterances, options)


def check_all(asr, utterances, options):
    """Print a line on each search."""
    searches = {"CTC, greedy": GreedySearcher(), "CTC, beam": CTCSearcher()}
    if asr.model.recognizer.transducer is not None:
        searches["transducer"] = TransducerSearcher(asr.model.recognizer)
    for pair in options.weights if options.arpa else ():
        lm_weight, word_bonus = map(float, pair.split(","))
        searches[f"CTC, beam and n-grams ({lm_weight}, {word_bonus})"] = CTCSearcher(
            arpa=options.arpa, lm_weight=lm_weight, word_bonus=word_bonus
        )
    for name, search in searches.items():
        if options.searches is None or name in options.searches:
            asr.use_search(search)
            check(name, asr, utterances)


if __name__ == "__main__":
    main()
