#!/usr/bin/env python3
"""Add AN4's training set to a LibriSpeech folder, in its layout, for ``small.yaml``.

``python recipes/LibriSpeech/add_an4.py AN4_FOLDER LIBRISPEECH_FOLDER`` writes the split
``an4-train``: letters, digits, dates and commands of 74 speakers, which books lack.
"""

import argparse
import pathlib
import sys
import tempfile

from tqdm import tqdm

from hyperconformer.audio import read_audio
from hyperconformer.corpora import an4
from hyperconformer.corpora.librispeech import write_split
from hyperconformer.corpora.manifest import read_manifest

SPLIT = "an4-train"
SAMPLE_RATE_HZ = 16000


def main(options):
    """Write the audio as FLAC and one file of transcripts for each speaker."""
    target = pathlib.Path(options.librispeech) / SPLIT
    with tempfile.TemporaryDirectory() as manifests:
        files = an4.prepare(options.an4, manifests, hold_out=False)
        rows = read_manifest(files["train"])
    utterances = (
        (row["spk_id"], read_audio(row["wav"], SAMPLE_RATE_HZ).numpy(), row["wrd"])
        for row in tqdm(rows, desc=SPLIT, unit="file")
    )
    speakers = write_split(target, utterances, SAMPLE_RATE_HZ)
    print(f"{target}: {len(rows)} utterances of {len(speakers)} speakers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("an4", help="the folder of AN4")
    parser.add_argument("librispeech", help="the folder that holds the splits")
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"add_an4.py: {error}")
