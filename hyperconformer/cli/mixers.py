"""``hyperconformer mixers``: print a table of the token mixers."""


def add_parser(commands):
    parser = commands.add_parser("mixers", help="print a table of the token mixers")
    parser.set_defaults(run=run)


def run(options):
    from hyperconformer.mixers.registry import mixers_table

    print(mixers_table(), end="")
    return 0
