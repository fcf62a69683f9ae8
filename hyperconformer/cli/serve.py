"""``hyperconformer serve``: recognition over HTTP and WebSockets."""

import dataclasses

from hyperconformer.cli.recognition import add_chunk_options, add_model_options
from hyperconformer.core.extras import import_extra

LIMITS = {
    "streams": "live streams at once, of each process (40 for each of its cores, "
    "5 where the model searches a list of words)",
    "files": "uploaded files at work or waiting, of each process",
    "upload_mb": "size of an upload",
    "audio_s": "length of an uploaded recording",
    "idle_s": "how long a client may send nothing",
    "finish_s": "how long utterances may go on after SIGTERM",
}


def add_parser(commands):
    serve = commands.add_parser(
        "serve", help="recognise over HTTP and WebSockets, as OpenAI's API does"
    )
    add_model_options(serve, without="the models that come with the package")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument(
        "--processes", type=int, default=1, metavar="N", help="one uses all cores"
    )
    serve.add_argument(
        "--token-file",
        metavar="FILE",
        help="its content is what clients must send as `Authorization: Bearer`",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="pages of this origin may use the server, as https://example.org",
    )
    add_chunk_options(serve)
    serve.add_argument(
        "--endpoint-s",
        type=float,
        default=1.0,
        metavar="S",
        help="silence that ends an utterance, where the client does not say",
    )
    for name, text in LIMITS.items():
        kind = int if name in ("streams", "files") else float
        flag = f"--max-{name.replace('_', '-')}"
        serve.add_argument(flag, type=kind, metavar="N", help=text)
    serve.set_defaults(run=run)


def run(options):
    for module in (
        "fastapi",
        "multipart",
        "prometheus_client",
        "uvicorn",
        "websockets",
    ):
        import_extra(module, "serve", "servers (from Python 3.11 on)")
    from hyperconformer.serve.app import Settings, serve
    from hyperconformer.serve.limits import Limits

    given = {name: getattr(options, f"max_{name}") for name in LIMITS}
    limits = Limits(**{name: n for name, n in given.items() if n is not None})
    names = {field.name for field in dataclasses.fields(Settings)}
    known = {name: value for name, value in vars(options).items() if name in names}
    if options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {options.port}")
    serve(
        Settings(
            **known,
            token=_read_token(options.token_file),
            origins=tuple(options.allow_origin),
            limits=limits,
        )
    )
    return 0


def _read_token(path):
    if path is None:
        return None
    from hyperconformer.core.text import read_text

    token = read_text(path).strip()
    if not token:
        raise ValueError(f"--token-file {path} is empty")
    return token
