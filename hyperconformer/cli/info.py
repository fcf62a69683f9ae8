"""``hyperconformer info``: print versions and what can be used."""


def add_parser(commands):
    parser = commands.add_parser("info", help="print versions and what can be used")
    parser.set_defaults(run=run)


def run(options):
    from hyperconformer.evaluation.environment import describe

    print(describe(), end="")
    return 0
