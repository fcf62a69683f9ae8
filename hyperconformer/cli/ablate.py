"""``hyperconformer ablate``: vary hyperparameters and report."""

from hyperconformer.cli.shipped import PrintNames
from hyperconformer.core.shipped import list_ablations


def add_parser(commands):
    parser = commands.add_parser(
        "ablate",
        help="vary hyperparameters as a YAML file says, and report",
        description="Further arguments (--key=value) go to every run, as those of "
        "`hyperconformer train`.",
    )
    parser.add_argument(
        "file", metavar="ABLATION", help="name of a shipped ablation, or a YAML file"
    )
    parser.add_argument(
        "--list",
        action=PrintNames,
        find=list_ablations,
        help="print the shipped ablations and exit",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print plan and cost")
    instead.add_argument(
        "--watch",
        action="store_true",
        help="run nothing; show a live table of the runs that other processes do with "
        "these results",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    parser.add_argument(
        "--results", default="results/ablations", metavar="DIR", help="where all goes"
    )
    parser.set_defaults(run=run, takes_extra=True)


def run(options):
    from hyperconformer.ablation.command import ablate

    return ablate(options)
