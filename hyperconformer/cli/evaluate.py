"""``hyperconformer evaluate``: the error rates on a manifest."""

import sys

from hyperconformer.cli.recognition import add_options, load_asr


def add_parser(commands):
    evaluate = commands.add_parser(
        "evaluate", help="print the error rates on a manifest"
    )
    evaluate.add_argument(
        "manifest",
        help="CSV with the columns ID, wav and wrd, or JSON Lines with audio_filepath "
        "and text; relative paths are relative to it",
    )
    add_options(evaluate)
    evaluate.add_argument(
        "--alignments", metavar="FILE", help="where to write what was wrong where"
    )
    evaluate.set_defaults(run=run)


def run(options):
    from tqdm import tqdm

    from hyperconformer.evaluation.error_rates import evaluate, interval, summarize

    failed = []

    def name_failed(utterance, reason):
        failed.append(utterance)
        tqdm.write(f"hyperconformer: utterance {utterance}: {reason}", file=sys.stderr)

    stats = evaluate(load_asr(options), options.manifest, on_error=name_failed)
    for name, stat in stats.items():
        summary = summarize(stat)
        edits, total = summary["num_edits"], summary["num_scored_tokens"]
        if total == 0:
            print(f"{name} undefined: the references are empty ({edits} insertions)")
            continue
        low, high = interval(stat)
        print(
            f"{name} {summary['WER']:.2f} % ({edits} of {total}), "
            f"95 % interval {low:.2f} to {high:.2f}"
        )
    if options.alignments:
        with open(options.alignments, "w", encoding="utf-8") as file:
            stats["WER"].write_stats(file)
    if failed:
        print(
            f"hyperconformer: {len(failed)} of {len(failed) + len(stat.scores)} "
            f"utterances failed: {', '.join(failed)}",
            file=sys.stderr,
        )
    return 1 if failed else 0
