#!/usr/bin/env python3
"""Write the pronunciations of all words of a LibriSpeech folder's training splits.

``python recipes/LibriSpeech/make_lexicon.py LIBRISPEECH_FOLDER`` writes
LIBRISPEECH_FOLDER/lexicon.txt.
"""

import pathlib
import sys

from hyperconformer.corpora.librispeech import read_transcripts
from hyperconformer.corpora.pronunciation import pronounce, write_lexicon


def main(data_folder):
    """Collect the words, and pronounce them."""
    data_folder = pathlib.Path(data_folder)
    files = sorted(data_folder.glob("*train*/*/*/*.trans.txt"))
    if not files:
        raise FileNotFoundError(f"no *train*/*/*/*.trans.txt in {data_folder}")
    texts = [text for file in files for text in read_transcripts(file).values()]
    words = {word for text in texts for word in text.split()}
    write_lexicon(data_folder / "lexicon.txt", pronounce(words))
    print(f"{data_folder}/lexicon.txt: {len(words)} words of {len(texts)} transcripts")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"make_lexicon.py: {error}")
