"""``hyperconformer verify``: whether what is claimed of a model holds here."""

import pathlib

from hyperconformer.cli.recognition import add_trusted


def add_parser(commands):
    """Declare the command and its options."""
    parser = commands.add_parser(
        "verify", help="measure what a model's card claims again: pass or fail"
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, output folder of a training run, name of a shipped model, "
        "or owner/name on the Hugging Face hub",
    )
    parser.add_argument(
        "--speech",
        metavar="FILE",
        help="measure on this manifest, as for `evaluate`, or on an4 or librispeech, "
        "which a clone of the repository holds; by default what was claimed of",
    )
    parser.add_argument("--json", metavar="FILE", help="where to write the verdict")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out levels, the longest input and the ONNX graphs",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="measure, then write verify.json and the part of README.md that is made "
        "from it",
    )
    add_trusted(parser)
    parser.set_defaults(run=run)


def run(options):
    """Measure, and print the table; 1 if a claim does not hold."""
    from hyperconformer.verification.verify import record, verify

    if options.record and (options.quick or options.json):
        name = "--quick" if options.quick else "--json"
        raise ValueError(f"--record measures everything, it goes without {name}")
    if options.record:
        print(record(options.model, options.speech, trusted=options.trusted))
        return 0
    verdict = verify(
        options.model, options.speech, quick=options.quick, trusted=options.trusted
    )
    print(verdict.table(), end="")
    if options.json:
        pathlib.Path(options.json).write_text(verdict.json(), encoding="utf-8")
    return 1 if verdict.failed else 0
