"""``hyperconformer ablate``: vary hyperparameters and report."""


def add_parser(commands):
    parser = commands.add_parser(
        "ablate",
        help="vary hyperparameters as a YAML file says, and report",
        description="Further arguments (--key=value) go to every run of train.py.",
    )
    parser.add_argument("file", metavar="YAML", help="hparams/ablations/NAME.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print plan and cost")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    parser.add_argument(
        "--results", default="results/ablations", metavar="DIR", help="where all goes"
    )
    parser.set_defaults(run=run, takes_extra=True)


def run(options):
    from hyperconformer.ablation.command import ablate

    return ablate(options)
