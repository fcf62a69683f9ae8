"""``hyperconformer transcribe``: print the text of audio files, or of a stream."""

import collections
import math
import os
import pathlib
import sys

from hyperconformer.cli.recognition import (
    add_chunk_options,
    add_options,
    check_search,
    load_asr,
    use_search,
)

# Formats of which a file holds one recording, and their names.
SUBTITLES = {"srt": "SubRip", "vtt": "WEBVTT"}


def add_parser(commands):
    transcribe = commands.add_parser("transcribe", help="print the text of audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE")
    add_options(transcribe)
    transcribe.add_argument(
        "--format",
        choices=("txt", "json", "srt", "vtt", "ctm"),
        help="json has all: words with times and confidences, and the n best readings; "
        "with --stream an object for each line of text (txt)",
    )
    transcribe.add_argument(
        "--nbest",
        type=int,
        default=1,
        metavar="N",
        help="with --format json: readings to return",
    )
    transcribe.add_argument(
        "--output",
        metavar="DIR",
        help="write a file for each FILE into this folder, named like FILE; without "
        "it, subtitles of several FILEs go beside these, all else to standard output",
    )
    transcribe.add_argument(
        "--overwrite", action="store_true", help="replace files that exist already"
    )
    transcribe.add_argument(
        "--stream",
        action="store_true",
        help="print words while they become final; FILE may be -, then 16-bit mono "
        "PCM at the model's rate is read from standard input",
    )
    add_chunk_options(transcribe, "--stream")
    transcribe.add_argument(
        "--endpoint-s",
        type=float,
        metavar="S",
        help="with --stream: silence that ends a line (1)",
    )
    transcribe.set_defaults(run=run)


def run(options):
    _check_transcribe(options)
    if options.stream:
        return _stream(options)
    from tqdm import tqdm

    from hyperconformer.core.files import write_atomically
    from hyperconformer.transcribe.formats import FORMATS

    suffix = options.format or "txt"
    targets = _find_targets(options, suffix)
    asr = load_asr(options, options.nbest)
    several = len(options.files) > 1
    # None: none either where standard error is no terminal, as in a log.
    hidden = None if several else True
    bar = tqdm(options.files, unit="file", disable=hidden, dynamic_ncols=True)
    written = []

    def write(path):
        text = FORMATS[suffix](path, asr.transcribe_file(path))
        if targets is not None:
            write_atomically(targets[path], text.encode())
            written.append(path)
            text = f"{path} --> {targets[path]}\n"
        elif suffix == "txt":
            text = _prefix(options, path) + text
        bar.write(text, file=sys.stdout, end="")

    code = _for_each(bar, write)
    if written:
        name, plural = SUBTITLES.get(suffix, suffix), "s" if len(written) > 1 else ""
        print(f"{len(written)} {name} file{plural} written")
    return code


def _check_transcribe(options):
    """Refuse options that would have no effect, or say so."""
    given = {
        f"--format {options.format}": options.format not in (None, "txt", "json"),
        "--output": options.output is not None,
        "--overwrite": options.overwrite,
    }
    needs_stream = {
        "--chunk-ms": options.chunk_ms is not None,
        "--left-context-ms": options.left_context_ms is not None,
        "--right-context-ms": options.right_context_ms is not None,
        "--endpoint-s": options.endpoint_s is not None,
        "- as FILE": "-" in options.files,
    }
    names = [name for name, is_given in given.items() if is_given]
    if options.stream and names:
        raise ValueError(f"--stream goes without {', '.join(names)}")
    names = [name for name, is_given in needs_stream.items() if is_given]
    if not options.stream and names:
        raise ValueError(f"only --stream takes {', '.join(names)}")
    if options.nbest > 1 and options.format != "json":
        _say(
            "hyperconformer: only --format json shows more than the best reading, got "
            f"--nbest {options.nbest} with --format {options.format or 'txt'}"
        )


def _find_targets(options, suffix):
    """Where the transcript of each file goes; None = to standard output.

    Raises
    ------
    ValueError
        If two transcripts would go into one file, or one would replace a file.
    """
    several = len(options.files) > 1
    if options.output is None and not (several and suffix in SUBTITLES):
        if options.overwrite:
            raise ValueError(
                "--overwrite needs --output DIR, or several files and --format srt or "
                "vtt: nothing else writes files"
            )
        return None
    if options.output is not None:
        folder = pathlib.Path(options.output)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--output must name a folder, got the file {folder}")
    targets = {}
    sources = collections.defaultdict(list)
    for path in options.files:
        target = pathlib.Path(path).with_suffix(f".{suffix}")
        target = target if options.output is None else folder / target.name
        targets[path] = target
        sources[os.path.realpath(target)].append(path)
    for target, paths in sources.items():
        if len(paths) > 1:
            raise ValueError(
                f"{' and '.join(paths)} would both be written to {target}: transcribe "
                "them one after the other, each with its own --output"
            )
    inputs = {os.path.realpath(path) for path in options.files}
    existing = [t for t in targets.values() if t.exists()]
    if inputs & set(sources):
        raise ValueError(
            f"{', '.join(sorted(inputs & set(sources)))}: a transcript would replace "
            "the audio; name another folder with --output"
        )
    if existing and not options.overwrite:
        raise ValueError(
            f"already there: {', '.join(map(str, existing))}; --overwrite replaces "
            "files, --output DIR writes elsewhere"
        )
    if options.output is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for folder in {target.parent for target in targets.values()}:
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise ValueError(f"{folder} cannot be written to; name another --output")
    return targets


def _stream(options):
    from hyperconformer.transcribe.formats import segment_to_json
    from hyperconformer.transcribe.streaming import StreamingASR, read_pcm

    check_search(options, options.nbest)
    endpoint_s = 1.0 if options.endpoint_s is None else options.endpoint_s
    if not 0 < endpoint_s < math.inf:
        raise ValueError(f"--endpoint-s must be above 0 and finite, got {endpoint_s}")
    if options.files.count("-") > 1:
        raise ValueError("standard input can be read only once, got - several times")
    asr = StreamingASR.from_hparams(
        options.model,
        device=options.device,
        trusted=options.trusted,
        endpoint_s=endpoint_s,
        chunk_ms=options.chunk_ms,
        left_context_ms=options.left_context_ms,
        right_context_ms=options.right_context_ms,
    )
    use_search(asr, options, options.nbest)
    rate_hz = asr.model.sample_rate_hz

    def write(path):
        if path == "-":
            pieces = _warn_of_silence(read_pcm(sys.stdin.buffer, rate_hz))
        else:
            pieces = _read_file(path, rate_hz)
        if options.format != "json":
            return _print_words(asr.partials(pieces), _prefix(options, path))
        for partial in asr.partials(pieces):
            if partial.ended and partial.words:
                print(segment_to_json(path, partial), end="", flush=True)

    return _for_each(options.files, write)


def _warn_of_silence(pieces):
    """The pieces; a message where there is none, as of a microphone that is off."""
    empty = True
    for piece in pieces:
        empty = False
        yield piece
    if empty:
        _say("hyperconformer: standard input ended without samples")


def _read_file(path, rate_hz):
    """The pieces of a file that is long enough for a word."""
    from hyperconformer.transcribe.offline import check_duration
    from hyperconformer.transcribe.streaming import read_pieces

    pieces = read_pieces(path, rate_hz)
    try:
        check_duration(sum(map(len, pieces)) / rate_hz)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return pieces


def _print_words(partials, prefix):
    """Print final words as they come, and each segment on a line."""
    shown = None  # words of this line, None where it has not begun
    for partial in partials:
        new = partial.words[shown or 0 :]
        if shown is None and (new or partial.ended):
            print(prefix, end="")
            shown = 0
        for word in new:
            print(word.text, end=" ", flush=True)
        shown = None if shown is None else len(partial.words)
        if partial.ended:
            print(flush=True)
            shown = None


def _prefix(options, path):
    """Begins a line of text, where there are several files to tell apart."""
    return f"{path}\t" if len(options.files) > 1 else ""


def _for_each(paths, write):
    """Call ``write(path)``; a file that fails is named and does not stop the rest."""
    failed = []
    for path in paths:
        try:
            write(path)
        except ValueError as error:
            failed.append(path)
            _say(f"hyperconformer: {error}")
    if failed and len(paths) > 1:
        _say(
            f"hyperconformer: {len(failed)} of {len(paths)} files failed: "
            + ", ".join(failed)
        )
    return 1 if failed else 0


def _say(line):
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)  # above a progress bar, if there is one
