#!/usr/bin/env python3
"""Make a pruned word n-gram model and its word list from text, with KenLM.

``python recipes/LibriSpeech/make_ngram.py LIBRISPEECH_FOLDER TEXT FOLDER`` writes
``lm.bin`` (KenLM's quantised binary) and ``words.txt`` for
:class:`hyperconformer.LexiconSearcher`. TEXT is a file of one sentence a line, in the
letters of the transcripts; the transcripts of the training splits are added to it.

``lmplz``, ``build_binary`` and ``query`` of KenLM (https://github.com/kpu/kenlm, to be
compiled with CMake) must be on the PATH.
"""

import argparse
import collections
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tqdm import tqdm

from hyperconformer.core.files import write_atomically
from hyperconformer.core.text import normalize
from hyperconformer.corpora.librispeech import read_transcripts

PROGRAMS = ("lmplz", "build_binary", "query")
# Of a probability and a back-off weight. With 8 bits, the development set's perplexity
# is no lower, and the file is a fifth larger.
BITS = "4"
# Pieces of the other splits' sentences (cut_words.py), which are no sentences.
PIECES = "words-train"


def main(options):
    """Count the words, estimate the model, compress it, and print its perplexity."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} not on the PATH: compile KenLM "
            "(https://github.com/kpu/kenlm) and add its build/bin"
        )
    corpus, folder = pathlib.Path(options.librispeech), pathlib.Path(options.folder)
    training = _read_split_texts(corpus, "*train*")
    if not training:
        raise FileNotFoundError(f"no *train*/*/*/*.trans.txt in {corpus}")
    counts = collections.Counter(word for text in training for word in text.split())
    spoken = set(counts)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        scratch = pathlib.Path(scratch)
        with open(scratch / "text", "w", encoding="utf-8") as file:
            with open(options.text, encoding="utf-8") as lines:
                for line in tqdm(lines, desc="counting words", unit="line"):
                    text = normalize(line)
                    counts.update(text.split())
                    print(text, file=file)
            file.write("\n".join([*training, ""]))
        words = sorted(
            word
            for word, count in counts.items()
            if count >= options.min_count or word in spoken
        )
        word_list = "\n".join([*words, ""]).encode()
        write_atomically(folder / "words.txt", word_list)
        _run(
            # The fallback is for texts that are too small to estimate discounts.
            *("lmplz", "-o", str(options.order), "-S", options.memory),
            "--discount_fallback",
            *("-T", str(scratch), "--prune", *map(str, options.prune)),
            *("--limit_vocab_file", str(folder / "words.txt")),
            *("--text", str(scratch / "text"), "--arpa", str(scratch / "lm.arpa")),
        )
        _run(
            *("build_binary", "-q", BITS, "-b", BITS, "-a", "22", "trie"),
            *(str(scratch / "lm.arpa"), str(scratch / "lm.bin")),
        )
        (scratch / "lm.bin").replace(folder / "lm.bin")
    size = (folder / "lm.bin").stat().st_size / 1e6
    print(f"{folder}/lm.bin: {size:.1f} MB, {len(words)} words")
    development = _read_split_texts(corpus, "dev-*")
    if development:
        text = "\n".join([*development, ""])
        print(_run("query", "-v", "summary", str(folder / "lm.bin"), text=text))


def _read_split_texts(corpus, splits):
    files = sorted(
        file
        for folder in corpus.glob(splits)
        if folder.name != PIECES
        for file in folder.glob("*/*/*.trans.txt")
    )
    return [
        normalize(text) for file in files for text in read_transcripts(file).values()
    ]


def _run(*command, text=None):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("librispeech", help="folder of the splits")
    parser.add_argument("text", help="sentences, one a line")
    parser.add_argument("folder", help="where lm.bin and words.txt go")
    parser.add_argument("--order", type=int, default=4, help="longest n-gram (4)")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        help="n-grams of each order that occur no oftener are left out (0 1 2 3)",
    )
    parser.add_argument(
        "--min-count", type=int, default=2, help="rarer words are left out (2)"
    )
    parser.add_argument("--memory", default="3G", help="for sorting (3G)")
    try:
        main(parser.parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"make_ngram.py: {error}")
