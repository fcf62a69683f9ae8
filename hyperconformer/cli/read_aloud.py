"""``hyperconformer read-aloud``: synthesise a small LibriSpeech."""


def add_parser(commands):
    parser = commands.add_parser(
        "read-aloud", help="a small LibriSpeech of synthetic voices, to try recipes on"
    )
    parser.add_argument("texts", metavar="TEXTS", help="LibriSpeech, audio not needed")
    parser.add_argument("output", metavar="OUTPUT", help="where the corpus goes")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="default: all seven"
    )
    parser.add_argument("--speakers", type=int, default=3, help="of each split")
    parser.add_argument("--utterances", type=int, default=4, help="of each speaker")
    parser.add_argument("--max-words", type=int, default=25, help="of an utterance")
    parser.set_defaults(run=run)


def run(options):
    from hyperconformer.corpora.librispeech import SPLITS
    from hyperconformer.corpora.synthetic.read_aloud import read_aloud

    minutes = read_aloud(
        options.texts,
        options.output,
        splits=options.splits or SPLITS,
        speakers=options.speakers,
        utterances=options.utterances,
        max_words=options.max_words,
    )
    print(f"{options.output}: {minutes:.1f} minutes of speech")
    return 0
