"""``hyperconformer convert``: SpeechBrain checkpoint to model folder, or back."""

import sys


def add_parser(commands):
    parser = commands.add_parser(
        "convert", help="SpeechBrain checkpoint to model folder, or back"
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder to read: the output folder of a SpeechBrain recipe, whose "
        "checkpoints are averaged, one of its CKPT+... folders, or a published model; "
        "with --to-speechbrain a model folder",
    )
    parser.add_argument("output", metavar="OUTPUT", help="folder to write")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--recipe",
        metavar="RECIPE",
        help="the SpeechBrain checkpoint in SOURCE fits the model of this recipe: the "
        "name of a shipped one (hyperconformer train --list), or a YAML file",
    )
    direction.add_argument(
        "--to-speechbrain",
        action="store_true",
        help="SOURCE is a model folder, or the output folder of a training run here",
    )
    parser.set_defaults(run=run)


def run(options):
    from hyperconformer.core.shipped import find_recipe
    from hyperconformer.hub.convert import (
        export_speechbrain,
        find_checkpoints,
        import_speechbrain,
    )

    if options.to_speechbrain:
        folder = export_speechbrain(options.source, options.output)
    else:
        recipe = find_recipe(options.recipe)
        names = [checkpoint.name for checkpoint in find_checkpoints(options.source)]
        if len(names) > 1:
            print(f"averaging {', '.join(names)}", file=sys.stderr)
        folder = import_speechbrain(options.source, options.output, recipe)
    print(folder)
    return 0
