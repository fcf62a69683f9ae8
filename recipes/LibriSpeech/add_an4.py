#!/usr/bin/env python3
"""Add AN4's training set to a LibriSpeech folder, in its layout, for ``small.yaml``.

``python recipes/LibriSpeech/add_an4.py AN4_FOLDER LIBRISPEECH_FOLDER`` writes the split
``an4-train``: letters, digits, dates and commands of 74 speakers, which books lack.
"""

import argparse
import collections
import pathlib
import sys
import tempfile

import soundfile
from tqdm import tqdm

from hyperconformer.audio import read_audio
from hyperconformer.corpora import an4
from hyperconformer.corpora.librispeech import write_transcripts
from hyperconformer.corpora.manifest import read_manifest

SPLIT = "an4-train"
SAMPLE_RATE_HZ = 16000


def main(options):
    """Write the audio as FLAC and one file of transcripts for each speaker."""
    target = pathlib.Path(options.librispeech) / SPLIT
    with tempfile.TemporaryDirectory() as manifests:
        files = an4.prepare(options.an4, manifests, hold_out=False)
        rows = read_manifest(files["train"])
    transcripts = collections.defaultdict(dict)
    for row in tqdm(rows, desc=SPLIT, unit="file"):
        chapter = target / row["spk_id"] / "0"
        chapter.mkdir(parents=True, exist_ok=True)
        key = f"{row['spk_id']}-0-{len(transcripts[chapter]):04d}"
        samples = read_audio(row["wav"], SAMPLE_RATE_HZ)
        soundfile.write(chapter / f"{key}.flac", samples.numpy(), SAMPLE_RATE_HZ)
        transcripts[chapter][key] = row["wrd"]
    for chapter, texts in transcripts.items():
        write_transcripts(chapter / f"{chapter.parent.name}-0.trans.txt", texts)
    print(f"{target}: {len(rows)} utterances of {len(transcripts)} speakers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("an4", help="the folder of AN4")
    parser.add_argument("librispeech", help="the folder that holds the splits")
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"add_an4.py: {error}")
