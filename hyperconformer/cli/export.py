"""``hyperconformer export``: a model as ONNX graphs."""

from hyperconformer.cli.recognition import add_chunk_options, add_trusted
from hyperconformer.core.stream_lengths import stream_lengths


def add_parser(commands):
    """Declare the command and its options."""
    parser = commands.add_parser(
        "export", help="write a model as ONNX graphs, from samples to tokens"
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model folder, output folder of a training run, name of a shipped model, "
        "or owner/name on the Hugging Face hub",
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--streaming", action="store_true", help="a graph of chunks, with its state"
    )
    add_chunk_options(parser, "--streaming")
    parser.add_argument(
        "--int8", action="store_true", help="also write model.int8.onnx, 8-bit weights"
    )
    parser.add_argument(
        "--check",
        metavar="MANIFEST",
        help="compare with PyTorch on this speech, and refuse what differs",
    )
    parser.add_argument(
        "--force", action="store_true", help="write also what --check refuses"
    )
    add_trusted(parser)
    parser.set_defaults(run=run)


def run(options):
    """Export, and print the comparison."""
    from hyperconformer.export.folder import export_model

    if not options.streaming:
        for name in ("chunk_ms", "left_context_ms", "right_context_ms"):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option} needs --streaming")
    chunk_ms, right_ms = stream_lengths(options.chunk_ms, options.right_context_ms)
    folder = export_model(
        options.model,
        options.folder,
        chunk_ms=chunk_ms if options.streaming else None,
        left_context_ms=options.left_context_ms,
        right_context_ms=right_ms if options.streaming else 0,
        int8=options.int8,
        manifest=options.check,
        force=options.force,
        trusted=options.trusted,
    )
    print((folder / "README.md").read_text("utf-8"), end="")
    return 0
