#!/usr/bin/env python3
"""Write the pronunciations of all words of a LibriSpeech folder's training splits.

``python recipes/LibriSpeech/make_lexicon.py LIBRISPEECH_FOLDER`` writes
LIBRISPEECH_FOLDER/lexicon.txt. ``python recipes/LibriSpeech/make_lexicon.py
NGRAM_FOLDER/words.txt`` adds all pronunciations to the words of an n-gram model, for
:class:`hyperconformer.PhoneSearcher`.
"""

import pathlib
import sys

from hyperconformer.core.files import write_atomically
from hyperconformer.core.text import read_text
from hyperconformer.corpora.librispeech import read_transcripts
from hyperconformer.lm.pronunciation import (
    lexicon_line,
    pronounce,
    pronounce_variants,
    write_lexicon,
)


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


def add_phones(words_file):
    """Write each word of a list with its pronunciations, one a line."""
    words = {line.split()[0] for line in read_text(words_file).splitlines() if line}
    lines = [
        lexicon_line(word, phones)
        for word, variants in pronounce_variants(words).items()
        for phones in variants
    ]
    write_atomically(words_file, "".join(lines).encode())
    print(f"{words_file}: {len(lines)} pronunciations of {len(words)} words")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        path = pathlib.Path(sys.argv[1])
        add_phones(path) if path.is_file() else main(path)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"make_lexicon.py: {error}")
