#!/usr/bin/env python3
"""What the inference API promises, measured on AN4 or on a split of LibriSpeech.

``python recipes/check_inference.py AN4_FOLDER --model hyperconformer-an4``
``python recipes/check_inference.py LIBRISPEECH/dev-clean [--part PART]``:

- ``times``: words' times against the forced alignment of the true transcript.
- ``long``: the utterances as one recording with gaps of noise or of zeros, in several
  chunks, against each alone.
- ``nbest``: how many different readings ``nbest=5`` gives, and the time it takes.
- ``hotwords``: how many of the words that are missed come right when each is given as a
  hot word, and how often a hot word appears in files that do not have it.
- ``speed``: seconds of speech a second on one thread, beside SpeechBrain's Conformer of
  the same size.

``--split valid`` takes AN4's development speakers instead of its test set. The shipped
model was trained on them too, hyperconformer-an4-streaming was not. ``--every N`` takes
every Nth utterance only.
"""

import argparse
import difflib
import functools
import itertools
import pathlib
import random
import statistics
import tempfile
import time

import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.utils.metric_stats import ErrorRateStats

from hyperconformer.audio import read_audio
from hyperconformer.corpora import an4, librispeech
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.search.ngram import hotword_search, ngram_search
from hyperconformer.transcribe.offline import ASR, CHUNK_S

RATE_HZ, SEED = 16000, 0
GAPS_S, GAP_NOISE = (0.3, 1.0, 3.0), (0.001, 0.0)
CHUNKS_S = (5, 10, 20, 40)
NBEST = 5
# Files and hot words that are not in them.
FALSE_ALARM_TRIALS = 500
SPEED_S, REPEATS = (5, 20, 60), 5


def read_split(folder, split="test"):
    """Transcripts and samples of ``"valid"`` or ``"test"`` of AN4, or of LibriSpeech's.

    A split of LibriSpeech is a folder itself.
    """
    if (folder / "etc").is_dir():
        utterances = an4.list_utterances(folder, "test" if split == "test" else "train")
        if split == "valid":
            speakers = an4.choose_valid_speakers(
                sorted({u.speaker for u in utterances})
            )
            utterances = [u for u in utterances if u.speaker in speakers]
        files = [(utterance.text, utterance.audio) for utterance in utterances]
    else:
        with tempfile.TemporaryDirectory() as manifests:
            manifest = librispeech.prepare(
                folder.parent, manifests, splits=[folder.name]
            )[folder.name]
            files = [(row["wrd"], row["wav"]) for row in read_manifest(manifest)]
    return [
        (text, torch.as_tensor(read_audio(audio)).reshape(-1)) for text, audio in files
    ]


def check_times(asr, utterances):
    """Median distance of word boundaries from the true transcript's alignment."""
    distances = []
    for text, samples in utterances:
        found = asr.transcribe(samples, RATE_HZ).words
        true = asr.align(samples, RATE_HZ, text)
        words = [[word.text for word in side] for side in (found, true)]
        for block in difflib.SequenceMatcher(None, *words, False).get_matching_blocks():
            for i in range(block.size):
                mine, theirs = found[block.a + i], true[block.b + i]
                distances.append(abs(mine.start_s - theirs.start_s))
                distances.append(abs(mine.end_s - theirs.end_s))
    # Of whole frames: 40 ms, but for rounding.
    within = 100 * sum(distance < 0.041 for distance in distances) / len(distances)
    median, mean = statistics.median(distances), statistics.mean(distances)
    print(
        f"{len(distances)} boundaries: median {1000 * median:.0f} ms, mean "
        f"{1000 * mean:.1f} ms, largest {1000 * max(distances):.0f} ms, "
        f"{within:.1f} % within 40 ms"
    )


def check_long(asr, utterances):
    """Error rates of one long recording."""
    texts = [text for text, _ in utterances]
    alone = [asr.transcribe(samples, RATE_HZ).text for _, samples in utterances]
    print(f"each alone: WER {error_rate(alone, texts):.2f} %")
    generator = torch.Generator().manual_seed(SEED)
    for gap_s, noise in itertools.product(GAPS_S, GAP_NOISE):
        parts = []
        for _, samples in utterances:
            gap = torch.randn(int(gap_s * RATE_HZ), generator=generator)
            parts += [samples, noise * gap]
        whole = torch.cat(parts)
        for chunk_s in CHUNKS_S:
            asr.chunk_s = chunk_s
            begin = time.perf_counter()
            text = asr.transcribe(whole, RATE_HZ).text
            print(
                f"{len(whole) / RATE_HZ:.0f} s, gaps {gap_s} s of "
                f"{'noise' if noise else 'zeros'}, chunks {chunk_s} s: "
                f"WER {error_rate([text], [' '.join(texts)]):.2f} %, "
                f"{time.perf_counter() - begin:.1f} s of work",
                flush=True,
            )
    asr.chunk_s = CHUNK_S


def check_nbest(asr, utterances):
    """How many readings there are, and what they cost."""
    for nbest in (1, NBEST):
        asr.use_search(ngram_search(asr.ngram, asr.recognizer, nbest=nbest))
        begin = time.perf_counter()
        readings = [
            len({each.text for each in asr.transcribe(samples, RATE_HZ).nbest})
            for _, samples in utterances
        ]
        print(
            f"nbest={nbest}: {sum(count == nbest for count in readings)} of "
            f"{len(readings)} files have {nbest} different readings, at least "
            f"{min(readings)}; {time.perf_counter() - begin:.1f} s"
        )


def check_hotwords(asr, utterances):
    """Missed words that come right, words that appear where they were not said."""
    plain_search = asr.search

    @functools.lru_cache(1)  # it takes a second where there is a large word list
    def favour(word):
        return hotword_search(
            plain_search, asr.ngram, asr.recognizer, asr.tokenizer, [word]
        )

    def recognise(samples, word=None):
        asr.search = plain_search if word is None else favour(word)
        return asr.transcribe(samples, RATE_HZ).text.split()

    plain = [recognise(samples) for _, samples in utterances]
    missed = []
    for index, (text, _) in enumerate(utterances):
        words = text.split()
        matcher = difflib.SequenceMatcher(None, words, plain[index], False)
        for kind, begin, end, _, _ in matcher.get_opcodes():
            if kind in ("replace", "delete"):
                missed += [(index, word) for word in words[begin:end]]
    right = [
        (index, word)
        for index, word in missed
        if recognise(utterances[index][1], word).count(word) > plain[index].count(word)
    ]
    trials = [
        (index, word)
        for word in sorted({word for _, word in missed})
        for index, (text, _) in enumerate(utterances)
        if word not in text.split() and word not in plain[index]
    ]
    source = random.Random(SEED)
    trials = source.sample(trials, min(len(trials), FALSE_ALARM_TRIALS))
    trials.sort(key=lambda trial: trial[1])
    begin = time.perf_counter()
    false = [
        (index, word)
        for index, word in trials
        if word in recognise(utterances[index][1], word)
    ]
    seconds = (time.perf_counter() - begin) / max(len(trials), 1)
    groups = ("all", 0), ("of two letters or more", 1), ("of five or more", 4)
    for name, longest in groups:
        count = [
            sum(len(word) > longest for _, word in pairs)
            for pairs in (right, missed, false, trials)
        ]
        print(
            f"{name}: {count[0]} of {count[1]} missed words come right, "
            f"{count[2]} false alarms in {count[3]} files without the word"
        )
    print(f"{seconds:.3f} s a file; missed still: {sorted(set(missed) - set(right))}")


def error_rate(hypotheses, references):
    """In percent."""
    stats = ErrorRateStats()
    stats.append(
        list(map(str, range(len(references)))),
        [text.split() for text in hypotheses],
        [text.split() for text in references],
    )
    return stats.summarize("WER")


@torch.no_grad()
def check_speed(asr, utterances):
    """The encoder beside SpeechBrain's, and the whole from samples to words."""
    torch.set_num_threads(1)
    ours = asr.recognizer.transformer
    layer = ours.encoder.layers[0]
    theirs = TransformerASR(
        tgt_vocab=asr.tokenizer.vocab_size(),
        input_size=ours.custom_src_module.layers[0].w.in_features,
        d_model=asr.recognizer.ctc_head.in_features,
        nhead=8,
        num_encoder_layers=len(ours.encoder.layers),
        num_decoder_layers=0,
        d_ffn=layer.ffn_module1[1].ffn[0].out_features,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
    ).eval()
    speech = torch.cat([samples for _, samples in utterances])
    for seconds in SPEED_S:
        samples = speech[: seconds * RATE_HZ]
        features, lengths = asr.extractor(samples[None])
        frames, _ = asr.recognizer.frontend(features, lengths)
        asr.chunk_s = seconds
        times = {
            "ours, encoder": seconds_of(lambda x=frames: ours.encode(x)),
            "SpeechBrain's Conformer": seconds_of(lambda x=frames: theirs.encode(x)),
            "ours, samples to words": seconds_of(
                lambda x=samples: asr.transcribe(x, RATE_HZ)
            ),
        }
        for name, taken in times.items():
            print(
                f"{seconds} s, {name}: {1000 * taken:.1f} ms, "
                f"real-time factor {taken / seconds:.4f}"
            )


def seconds_of(function):
    """Median of several runs after one to warm up."""
    taken = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


PARTS = {
    "times": check_times,
    "long": check_long,
    "nbest": check_nbest,
    "hotwords": check_hotwords,
    "speed": check_speed,
}


def speech_parser(description):
    """A parser that asks for what :func:`read_split` reads, and for a model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "folder",
        type=pathlib.Path,
        help="AN4, with etc and wav, or a split of LibriSpeech",
    )
    parser.add_argument("--model", help="model folder; without it the default one")
    parser.add_argument("--split", choices=("valid", "test"), default="test")
    return parser


def main():
    """Measure what the command line asks for."""
    parser = speech_parser(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="only this one")
    parser.add_argument("--arpa", help="word n-grams; without it the model's own")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    options = parser.parse_args()
    asr = ASR.from_hparams(options.model)
    if options.arpa:
        asr.ngram = {"arpa": options.arpa, "lm_weight": 0.4, "word_bonus": 0.5}
    utterances = read_split(options.folder, options.split)[:: options.every]
    for name, check in PARTS.items():
        if options.part in (None, name):
            print(f"{name}:")
            asr.use_search(ngram_search(asr.ngram, asr.recognizer))
            check(asr, utterances)


if __name__ == "__main__":
    main()
