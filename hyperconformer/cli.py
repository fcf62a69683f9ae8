"""The command ``hyperconformer``."""

import argparse
import sys


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        The command line without the program; None takes the real one.

    Returns
    -------
    int
        Exit code: 0 done, 1 an input failed.
    """
    parser = argparse.ArgumentParser(
        prog="hyperconformer", description="Speech recognition with HyperConformer."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    transcribe = commands.add_parser("transcribe", help="print the text of audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE")
    transcribe.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="model folder, or the output folder of a training run",
    )
    transcribe.add_argument("--device", default="cpu", help="for instance cpu or cuda")
    transcribe.set_defaults(run=_transcribe)
    mixers = commands.add_parser("mixers", help="print a table of the token mixers")
    mixers.set_defaults(run=_mixers)
    options = parser.parse_args(arguments)
    return options.run(options)


def _mixers(options):
    from hyperconformer.registry import mixers_table

    print(mixers_table(), end="")
    return 0


def _transcribe(options):
    from hyperconformer.inference import ASR

    try:
        asr = ASR.from_hparams(source=options.model, device=options.device)
    except (FileNotFoundError, ValueError) as error:
        print(f"hyperconformer: {error}", file=sys.stderr)
        return 1
    failed = []
    for path in options.files:
        try:
            text = asr.transcribe_file(path)
        except ValueError as error:
            failed.append(path)
            print(f"hyperconformer: {error}", file=sys.stderr)
            continue
        print(text if len(options.files) == 1 else f"{path}\t{text}")
    if failed:
        print(
            f"hyperconformer: {len(failed)} of {len(options.files)} files failed: "
            + ", ".join(failed),
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
