"""``python -m benchmarks [SUITE ...]``: run benchmarks, write CSV, tables, pictures.

``python -m benchmarks table`` and ``gpu`` have options of their own: ``--help``.
"""

import argparse
import importlib
import pathlib
import sys

RESULTS = pathlib.Path(__file__).parent / "results"
README = pathlib.Path(__file__).parents[1] / "README.md"
# Commands of their own; the second needs no SpeechBrain, and nothing here may.
COMMANDS = ("table", "gpu")


def main(arguments=None):
    """Run the suites that the command line names; exit 1 if a contest was refused."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    import torch

    from benchmarks.environment import environment
    from benchmarks.report import (
        speedups,
        suite_markdown,
        write_csv,
        write_readme,
        write_report,
    )
    from benchmarks.suites import LONG_SUITES, SUITES

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help=f"of {', '.join(SUITES)}, or report; "
        f"unless named, all but {', '.join(LONG_SUITES)}",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="to spend on each comparison"
    )
    parser.add_argument(
        "--results", type=pathlib.Path, default=RESULTS, help="folder for the results"
    )
    options = parser.parse_args(arguments)
    known = [*SUITES, "report"]
    for suite in options.suites:
        if suite not in known:
            parser.error(f"unknown suite {suite!r}; known: {', '.join(known)}")
    torch.set_num_threads(options.threads)
    options.results.mkdir(parents=True, exist_ok=True)
    facts = environment(options.threads)
    refused = 0
    for suite in options.suites or [s for s in SUITES if s not in LONG_SUITES]:
        if suite == "report":
            continue
        torch.manual_seed(0)
        rows = []
        for row in SUITES[suite](options.seconds):
            refused += row is None
            if row is not None:
                print(f"{suite}: {row.case}, {row.step}, {row.contender}", flush=True)
                rows.append(row)
                # At once: an interrupted run leaves what it has measured.
                write_csv(options.results / f"{suite}.csv", rows, facts)
        print(suite_markdown(suite, rows, facts), flush=True)
    write_report(options.results)
    if options.results == RESULTS:
        write_readme(README, "speedups", speedups(RESULTS))
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
