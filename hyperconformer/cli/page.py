"""``hyperconformer page``: a web page that runs an exported model in the browser."""


def add_parser(commands):
    parser = commands.add_parser(
        "page", help="a web page that recognises speech in the browser"
    )
    parser.add_argument(
        "export",
        metavar="EXPORT",
        help="folder to read, from `hyperconformer export MODEL EXPORT --streaming`",
    )
    parser.add_argument(
        "site", metavar="SITE", help="folder to write, for any web server"
    )
    parser.set_defaults(run=run)


def run(options):
    import pathlib

    from hyperconformer.page.site import size_bytes, write_site

    graph = write_site(options.export, options.site)
    size = size_bytes(pathlib.Path(options.site)) / 1e6
    print(f"{options.site}: {size:.1f} MB, with {graph}")
    print(f"serve it: python -m http.server --directory {options.site}")
    print("then open http://localhost:8000")
    return 0
