"""``hyperconformer train``: train a recipe and evaluate what it has learned."""

from hyperconformer.cli.shipped import PrintNames
from hyperconformer.core.shipped import list_recipes


def add_parser(commands):
    parser = commands.add_parser(
        "train",
        help="train a recipe, and print the error rates",
        usage="hyperconformer train [-h] [--list] RECIPE [--KEY=VALUE ...]",
        description="RECIPE is the name of a shipped recipe or a YAML file. "
        "--KEY=VALUE overrides any key of it. SpeechBrain's run options work too: "
        "--device, --precision, --test_only and so on. The same command continues an "
        "interrupted run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--list",
        action=PrintNames,
        find=list_recipes,
        help="print the shipped recipes and exit",
    )
    parser.set_defaults(run=run, takes_extra=True)


def run(options):
    if not options.extra:
        raise ValueError("train needs a recipe or a YAML file; --list prints recipes")
    from hyperconformer.training.command import train

    return train(options.extra)
