#!/usr/bin/env python3
"""What the inference API promises, measured on AN4's test set.

``python recipes/AN4/check_inference.py AN4_FOLDER [--model DIR] [--part PART]``:

- ``times``: words' times against the forced alignment of the true transcript.
- ``long``: all utterances as one recording with pauses, in several chunks, against
  each alone.
- ``speed``: seconds of speech a second on one thread, beside SpeechBrain's Conformer of
  the same size.
"""

import argparse
import difflib
import pathlib
import statistics
import time

import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.utils.metric_stats import ErrorRateStats

from hyperconformer.audio import read_audio
from hyperconformer.corpora.an4 import list_utterances
from hyperconformer.inference import ASR

RATE_HZ = 16000
PAUSES_S = (0.5, 1.5)
CHUNKS_S = (5, 10, 20, 30)
SPEED_S, REPEATS = (5, 20, 60), 5


def read_test_set(folder):
    """Transcripts and samples of the test utterances."""
    return [
        (utterance.text, read_audio(utterance.audio))
        for utterance in list_utterances(folder, "test")
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
    reference = " ".join(text for text, _ in utterances).split()
    alone = [asr.transcribe(samples, RATE_HZ).text for _, samples in utterances]
    print(f"each alone: WER {error_rate(' '.join(alone).split(), reference):.2f} %")
    for pause_s in PAUSES_S:
        pause = torch.zeros(int(pause_s * RATE_HZ))
        parts = [part for _, samples in utterances for part in (samples, pause)]
        whole = torch.cat(parts)
        for chunk_s in CHUNKS_S:
            asr.chunk_s = chunk_s
            begin = time.perf_counter()
            text = asr.transcribe(whole, RATE_HZ).text
            print(
                f"{len(whole) / RATE_HZ:.0f} s, pauses {pause_s}, chunks {chunk_s} s: "
                f"WER {error_rate(text.split(), reference):.2f} %, "
                f"{time.perf_counter() - begin:.1f} s of work"
            )


def error_rate(hypothesis, reference):
    """In percent."""
    stats = ErrorRateStats()
    stats.append(["all"], [hypothesis], [reference])
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


PARTS = {"times": check_times, "long": check_long, "speed": check_speed}


def main():
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="AN4, with etc and wav")
    parser.add_argument("--model", help="model folder; without it the shipped one")
    parser.add_argument("--part", choices=PARTS, help="only this one")
    options = parser.parse_args()
    asr = ASR.from_hparams(options.model)
    utterances = read_test_set(options.folder)
    for name, check in PARTS.items():
        if options.part in (None, name):
            print(f"{name}:")
            check(asr, utterances)


if __name__ == "__main__":
    main()
