#!/usr/bin/env python3
"""Make sentences for a language model from books of Project Gutenberg.

``python recipes/LibriSpeech/clean_books.py BOOKS TEXT --known TEXT ... --keep-out SPLIT
...`` reads every BOOKS/**/*.txt and writes their sentences into TEXT, one a line, in
LibriSpeech's form: A to Z and the apostrophe.

``--keep-out`` names splits that will be recognised, such as LIBRISPEECH/test-clean. A
book that shares more than five sequences of eight words with their transcripts is left
out, as is each other sentence that shares one. Sentences of the texts that ``--known``
names, and repeated ones, are left out too: books appear in several editions.
"""

import argparse
import functools
import multiprocessing
import pathlib
import re
import sys
import unicodedata

from tqdm import tqdm

from hyperconformer.core.text import normalize, read_text
from hyperconformer.corpora.librispeech import list_utterances

# The book stands between lines that begin so.
START = re.compile(r"^\W*(START OF (THE|THIS) PROJECT|END\W+THE SMALL PRINT).*$", re.M)
END = re.compile(r"^\W*END OF (THE |THIS )?PROJECT GUTENBERG.*$", re.M | re.I)
PARAGRAPH = re.compile(r"\n\s*\n")
# After the full stop of an abbreviation, a sentence goes on.
SPOKEN = {
    "Mr": "Mister",
    "Messrs": "Messieurs",
    "Mrs": "Missus",
    "Dr": "Doctor",
    "St": "Saint",
    "Capt": "Captain",
    "Col": "Colonel",
    "Gen": "General",
    "Lieut": "Lieutenant",
    "Rev": "Reverend",
    "Esq": "Esquire",
    "Prof": "Professor",
    "Hon": "Honourable",
}
ABBREVIATION = re.compile(rf"\b({'|'.join(SPOKEN)})(\.|(?=\s[A-Z]))")
INITIAL = re.compile(r"\b([A-Z])\.(?=\s*[A-Za-z])")
SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+(?=["'“‘(\[]*[A-Z])""")
NOT_SPOKEN = re.compile(r"\[[^\]]*\]|[_*=|~#^{}<>]")
NOT_LETTERS = re.compile(r"[^A-Z']+")
STRAY_APOSTROPHE = re.compile(r"(?<![A-Z])'+|'+(?![A-Z])|'{2,}")
# English prose has about every third word from these; other languages have few.
COMMON = frozenset("THE OF AND TO A IN THAT HE WAS IT HIS I WITH AS FOR YOU".split())
LEAST_COMMON = 0.2
SEQUENCE = 8
MOST_SHARED = 5
# Shorter sentences occur in many books.
LONG = 6
# A book of which more long sentences are known is another edition.
MOST_KNOWN = 0.5


def main(options):
    """Read the books, leave out what must be, and write the rest."""
    books = sorted(pathlib.Path(options.books).rglob("*.txt"))
    if not books:
        raise FileNotFoundError(f"no .txt files in {options.books}")
    kept_out = {
        sequence
        for split in options.keep_out
        for words in _transcripts(pathlib.Path(split))
        for sequence in _sequences(words)
    }
    known = {
        hash(line.strip())
        for path in options.known
        for line in read_text(pathlib.Path(path)).splitlines()
    }
    left_out = {"not English prose": [], "shared with a split": [], "known": []}
    count = 0
    clean = functools.partial(_clean, kept_out=kept_out)
    with (
        open(options.text, "w", encoding="utf-8") as file,
        multiprocessing.Pool(options.processes) as pool,
    ):
        # Each chunk is sent with all that is kept out.
        cleaned = pool.imap(clean, books, chunksize=16)
        for book, (reason, sentences) in zip(
            books, tqdm(cleaned, total=len(books), unit="book"), strict=True
        ):
            numbers = [hash(one) for one in sentences]
            lengths = [one.count(" ") + 1 for one in sentences]
            long = [n for n, length in zip(numbers, lengths) if length >= LONG]
            new = set(long) - known
            if not reason and len(new) <= (1 - MOST_KNOWN) * len(long):
                reason = "known"
            if reason:
                left_out[reason].append(book)
                continue
            for sentence, number, length in zip(sentences, numbers, lengths):
                if length < LONG or number not in known:
                    known.add(number)
                    print(sentence, file=file)
                    count += length
    for reason, names in left_out.items():
        print(f"left out, {reason}: {len(names)} books")
        if reason == "shared with a split":
            print("\n".join(f"  {name.stem}" for name in names))
    written = len(books) - sum(map(len, left_out.values()))
    print(f"{options.text}: {count / 1e6:.1f} million words of {written} books")


def _clean(path, kept_out):
    """Why a book is left out, or None, and its sentences."""
    sentences = list(_sentences(_decode(path.read_bytes())))
    words = [word for one in sentences for word in one.split()]
    common = sum(word in COMMON for word in words)
    if common <= LEAST_COMMON * len(words):
        return "not English prose", []
    matches = {
        one: shared
        for one in sentences
        if (shared := kept_out.intersection(_sequences(one.split())))
    }
    if len(set().union(*matches.values())) > MOST_SHARED:
        return "shared with a split", []
    return None, [one for one in sentences if one not in matches]


def _decode(data):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _sentences(text):
    """The sentences of a book's paragraphs."""
    text = text.replace("\r", "")
    starts = list(START.finditer(text))
    text = text[starts[-1].end() if starts else 0 :]
    end = END.search(text)
    text = text[: end.start() if end else len(text)]
    for paragraph in PARAGRAPH.split(text):
        paragraph = NOT_SPOKEN.sub("", " ".join(paragraph.split()))
        # Headings, tables and lists are no prose.
        if paragraph.isupper() or paragraph[-1:] not in set(".!?\"'”’)"):
            continue
        paragraph = ABBREVIATION.sub(lambda found: SPOKEN[found[1]], paragraph)
        paragraph = INITIAL.sub(r"\1 ", paragraph)
        for sentence in SENTENCE_END.split(paragraph):
            words = _spoken(sentence)
            if words:
                yield words


def _spoken(sentence):
    """A sentence in LibriSpeech's form; nothing if it has digits."""
    if any(character.isdigit() for character in sentence):
        return ""
    sentence = sentence.replace("’", "'").replace("‘", " ").replace("&", " and ")
    plain = unicodedata.normalize("NFKD", sentence)
    plain = "".join(one for one in plain if not unicodedata.combining(one)).upper()
    words = NOT_LETTERS.sub(" ", plain.replace("Æ", "AE").replace("Œ", "OE"))
    return " ".join(STRAY_APOSTROPHE.sub(" ", words).split())


def _transcripts(split):
    texts = [one.text for one in list_utterances(split) if one.text]
    if not texts:
        raise FileNotFoundError(f"no */*/*.trans.txt in {split}")
    return [normalize(text).split() for text in texts]


def _sequences(words):
    return {
        " ".join(words[first : first + SEQUENCE])
        for first in range(len(words) - SEQUENCE + 1)
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", help="folder of books, in folders of its own or not")
    parser.add_argument("text", help="the file that is written")
    parser.add_argument("--known", nargs="*", default=[], help="texts to add to")
    parser.add_argument(
        "--keep-out", nargs="*", default=[], help="splits that will be recognised"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes (2)")
    try:
        main(parser.parse_args())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"Error: {error}")
