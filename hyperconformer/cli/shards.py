"""``hyperconformer shards``: pack a corpus into a few large tar files."""

import os
import pathlib
import sys


def add_parser(commands):
    parser = commands.add_parser(
        "shards", help="a corpus in a few large tar files, to train on"
    )
    parser.add_argument(
        "corpus", metavar="CORPUS", help="its name, as librispeech or csv"
    )
    parser.add_argument("data", metavar="DATA", help="where it lies")
    parser.add_argument("output", metavar="OUTPUT", help="where the shards go")
    parser.add_argument(
        "--shard-mb", type=float, default=1000, metavar="MB", help="size of a shard"
    )
    parser.set_defaults(run=run)


def run(options):
    from hyperconformer.corpora import load_corpus, prepare
    from hyperconformer.corpora.shards import require_local, write_shards

    if not options.shard_mb > 0:  # before the corpus is prepared
        raise ValueError(f"--shard-mb must be above 0, got {options.shard_mb}")
    require_local(options.output)
    sys.path.append(os.getcwd())  # where a file of the user's own lies, for !name:
    corpus = load_corpus(f"corpus: {options.corpus}")
    folder = pathlib.Path(options.output) / "manifests"
    manifests = prepare(corpus, options.data, folder)
    number = write_shards(manifests, options.output, options.shard_mb)
    print(f"{options.output}: {', '.join(manifests)} in {number} shards")
    return 0
