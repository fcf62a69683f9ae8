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
    convert = commands.add_parser(
        "convert", help="SpeechBrain checkpoint to model folder, or back"
    )
    convert.add_argument("source", metavar="SOURCE", help="folder to read")
    convert.add_argument("output", metavar="OUTPUT", help="folder to write")
    direction = convert.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--recipe",
        metavar="YAML",
        help="the SpeechBrain checkpoint in SOURCE fits the model of this file",
    )
    direction.add_argument(
        "--to-speechbrain",
        action="store_true",
        help="SOURCE is a model folder, or the output folder of a training run",
    )
    convert.set_defaults(run=_convert)
    mixers = commands.add_parser("mixers", help="print a table of the token mixers")
    mixers.set_defaults(run=_mixers)
    options = parser.parse_args(arguments)
    return options.run(options)


def _convert(options):
    from hyperconformer.convert import export_speechbrain, import_speechbrain

    try:
        if options.to_speechbrain:
            folder = export_speechbrain(options.source, options.output)
        else:
            folder = import_speechbrain(options.source, options.output, options.recipe)
    except (FileNotFoundError, ValueError) as error:
        print(f"hyperconformer: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


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
