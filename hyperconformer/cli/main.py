"""The command ``hyperconformer``."""

import argparse
import collections
import math
import os
import pathlib
import sys
import warnings

from hyperconformer import __version__
from hyperconformer.cli.console import run_command

# Formats of which a file holds one recording, and their names.
SUBTITLES = {"srt": "SubRip", "vtt": "WEBVTT"}
# Readings that a search keeps.
BEAM = 50


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        The command line without the program; None takes the real one.

    Returns
    -------
    int
        Exit code: 0 done, 1 an input failed; others as
        :func:`hyperconformer.cli.console.run_command`.
    """
    return run_command("hyperconformer", _main, arguments)


def _main(arguments):
    parser = argparse.ArgumentParser(
        prog="hyperconformer", description="Speech recognition with HyperConformer."
    )
    parser.add_argument(
        "--version", action="version", version=f"hyperconformer {__version__}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_transcribe(commands)
    _add_evaluate(commands)
    info = commands.add_parser("info", help="print versions and what can be used")
    info.set_defaults(run=_info)
    convert = commands.add_parser(
        "convert", help="SpeechBrain checkpoint to model folder, or back"
    )
    convert.add_argument(
        "source",
        metavar="SOURCE",
        help="folder to read: the output folder of a SpeechBrain recipe, whose "
        "checkpoints are averaged, one of its CKPT+... folders, or a published model; "
        "with --to-speechbrain a model folder",
    )
    convert.add_argument("output", metavar="OUTPUT", help="folder to write")
    direction = convert.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--recipe",
        metavar="YAML",
        help="the SpeechBrain checkpoint in SOURCE fits the model of this file",
    )
    direction.add_argument(
        "--to-speechbrain",
        action="store_true",
        help="SOURCE is a model folder, or the output folder of a training run here",
    )
    convert.set_defaults(run=_convert)
    aloud = commands.add_parser(
        "read-aloud", help="a small LibriSpeech of synthetic voices, to try recipes on"
    )
    aloud.add_argument("texts", metavar="TEXTS", help="LibriSpeech, audio not needed")
    aloud.add_argument("output", metavar="OUTPUT", help="where the corpus goes")
    aloud.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="default: all seven"
    )
    aloud.add_argument("--speakers", type=int, default=3, help="of each split")
    aloud.add_argument("--utterances", type=int, default=4, help="of each speaker")
    aloud.add_argument("--max-words", type=int, default=25, help="of an utterance")
    aloud.set_defaults(run=_read_aloud)
    shards = commands.add_parser(
        "shards", help="a corpus in a few large tar files, to train on"
    )
    shards.add_argument(
        "corpus", metavar="CORPUS", help="its name, as librispeech or csv"
    )
    shards.add_argument("data", metavar="DATA", help="where it lies")
    shards.add_argument("output", metavar="OUTPUT", help="where the shards go")
    shards.add_argument(
        "--shard-mb", type=float, default=1000, metavar="MB", help="size of a shard"
    )
    shards.set_defaults(run=_shards)
    mixers = commands.add_parser("mixers", help="print a table of the token mixers")
    mixers.set_defaults(run=_mixers)
    ablate = commands.add_parser(
        "ablate",
        help="vary hyperparameters as a YAML file says, and report",
        description="Further arguments (--key=value) go to every run of train.py.",
    )
    ablate.add_argument("file", metavar="YAML", help="hparams/ablations/NAME.yaml")
    ablate.add_argument("--dry-run", action="store_true", help="print plan and cost")
    ablate.add_argument("--jobs", type=int, default=1, help="runs at once")
    ablate.add_argument("--retry", action="store_true", help="do failed runs again")
    ablate.add_argument(
        "--results", default="results/ablations", metavar="DIR", help="where all goes"
    )
    ablate.set_defaults(run=_ablate)
    options, extra = parser.parse_known_args(arguments)
    if extra and options.run is not _ablate:
        parser.error(f"unrecognized arguments: {' '.join(extra)}")
    options.extra = extra
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return options.run(options)


def _show_warning(message, category, filename, line, file=None, text=None):
    """Print our own warnings without the line of code that they are from."""
    shown = f"hyperconformer: {message}\n"
    if not category.__module__.startswith("hyperconformer."):
        shown = warnings.formatwarning(message, category, filename, line, text)
    sys.stderr.write(shown)


def _add_transcribe(commands):
    transcribe = commands.add_parser("transcribe", help="print the text of audio files")
    transcribe.add_argument("files", nargs="+", metavar="FILE")
    _add_model(transcribe)
    transcribe.add_argument(
        "--format",
        choices=("txt", "json", "srt", "vtt", "ctm"),
        help="json has all: words with times and confidences, and the n best readings "
        "(txt)",
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
    transcribe.add_argument(
        "--chunk-ms",
        type=float,
        metavar="MS",
        help="with --stream: recognise as many milliseconds at once (640)",
    )
    transcribe.add_argument(
        "--left-context-ms",
        type=float,
        metavar="MS",
        help="with --stream: how far to look back; attention needs it (all)",
    )
    transcribe.add_argument(
        "--endpoint-s",
        type=float,
        metavar="S",
        help="with --stream: silence that ends a line (1)",
    )
    transcribe.set_defaults(run=_transcribe)


def _add_evaluate(commands):
    evaluate = commands.add_parser(
        "evaluate", help="print the error rates on a manifest"
    )
    evaluate.add_argument(
        "manifest",
        help="CSV with the columns ID, wav and wrd, or JSON Lines with audio_filepath "
        "and text; relative paths are relative to it",
    )
    _add_model(evaluate)
    evaluate.add_argument(
        "--alignments", metavar="FILE", help="where to write what was wrong where"
    )
    evaluate.set_defaults(run=_evaluate)


def _add_model(command):
    """Options of every command that recognises."""
    command.add_argument(
        "--model",
        metavar="DIR",
        help="model folder, output folder of a training run, or owner/name on the "
        "Hugging Face hub; without it the model that comes with the package",
    )
    command.add_argument("--device", default="cpu", help="for instance cpu or cuda")
    command.add_argument(
        "--trusted",
        action="store_true",
        help="let the model folder run code: only for your own",
    )
    command.add_argument(
        "--beam", type=int, metavar="N", help="readings to keep in the search (50)"
    )
    command.add_argument(
        "--hotwords", metavar="FILE", help="words or phrases to favour, one a line"
    )
    command.add_argument(
        "--lm",
        metavar="PATH",
        help="language model: an ARPA file, or the output folder of hparams/lm.yaml; "
        "`none` leaves out the n-grams that a model folder holds",
    )
    command.add_argument(
        "--lm-weight",
        type=float,
        metavar="W",
        help="weight of the language model (the model folder's; of another one 0.5)",
    )


def _load_asr(options, nbest=1):
    from hyperconformer.transcribe.offline import ASR

    _check_search(options, nbest)
    asr = ASR.from_hparams(
        source=options.model, device=options.device, trusted=options.trusted
    )
    wants = (nbest != 1, options.beam, options.hotwords, options.lm)
    if any(wants) or options.lm_weight is not None:
        asr.use_search(_search(options, nbest, asr.ngram))
    return asr


def _check_search(options, nbest=1):
    """Refuse numbers that cannot be, by the names that the user knows."""
    if options.beam is not None and options.beam < 1:
        raise ValueError(f"--beam must be at least 1, got {options.beam}")
    if nbest < 1:
        raise ValueError(f"--nbest must be from 1 upwards, got {nbest}")
    if options.beam is not None and nbest > options.beam:
        raise ValueError(
            f"--nbest must be from 1 to --beam = {options.beam}, got {nbest}"
        )
    weight = options.lm_weight
    if weight is not None and not (weight >= 0 and math.isfinite(weight)):
        raise ValueError(f"--lm-weight must be a number from 0, got {weight}")
    if weight is not None and options.lm == "none":
        raise ValueError("--lm-weight needs a language model, got --lm none")


def _search(options, nbest, ngram):
    from hyperconformer.search.ctc_beam import CTCSearcher

    hotwords = _read_hotwords(options.hotwords) if options.hotwords else []
    lm = _language_model(options, ngram)
    if not (lm or hotwords or options.beam) and nbest == 1:
        return None  # the model's own greedy search
    return CTCSearcher(
        beam_size=options.beam or max(BEAM, nbest),
        nbest=nbest,
        hotwords=hotwords,
        **lm,
    )


def _read_hotwords(path):
    from hyperconformer.core.text import read_text

    hotwords = [line for line in read_text(path).splitlines() if line.strip()]
    if not hotwords:
        raise ValueError(f"--hotwords {path} holds no words")
    return hotwords


def _language_model(options, ngram):
    """Options of CTCSearcher: the model that is named, else the model folder's."""
    if options.lm is None:
        if options.lm_weight is None:
            return ngram
        if not ngram:
            raise ValueError("--lm-weight needs a language model: name one with --lm")
        return {**ngram, "lm_weight": options.lm_weight}
    if options.lm == "none":
        return {}
    weight = 0.5 if options.lm_weight is None else options.lm_weight
    if pathlib.Path(options.lm).is_dir():
        return {"lm_folder": options.lm, "rescore_weight": weight}
    return {"arpa": options.lm, "lm_weight": weight}


def _evaluate(options):
    from tqdm import tqdm

    from hyperconformer.evaluation.error_rates import evaluate, interval, summarize

    failed = []

    def name_failed(utterance, reason):
        failed.append(utterance)
        tqdm.write(f"hyperconformer: utterance {utterance}: {reason}", file=sys.stderr)

    stats = evaluate(_load_asr(options), options.manifest, on_error=name_failed)
    for name, stat in stats.items():
        summary = summarize(stat)
        edits, total = summary["num_edits"], summary["num_scored_tokens"]
        if total == 0:
            print(f"{name} undefined: the references are empty ({edits} insertions)")
            continue
        low, high = interval(stat)
        print(
            f"{name} {summary['WER']:.2f} % ({edits} of {total}), "
            f"95 % interval {low:.2f} to {high:.2f}"
        )
    if options.alignments:
        with open(options.alignments, "w", encoding="utf-8") as file:
            stats["WER"].write_stats(file)
    if failed:
        print(
            f"hyperconformer: {len(failed)} of {len(failed) + len(stat.scores)} "
            f"utterances failed: {', '.join(failed)}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _info(options):
    from hyperconformer.evaluation.environment import describe

    print(describe(), end="")
    return 0


def _convert(options):
    from hyperconformer.hub.convert import (
        export_speechbrain,
        find_checkpoints,
        import_speechbrain,
    )

    if options.to_speechbrain:
        folder = export_speechbrain(options.source, options.output)
    else:
        names = [checkpoint.name for checkpoint in find_checkpoints(options.source)]
        if len(names) > 1:
            print(f"averaging {', '.join(names)}", file=sys.stderr)
        folder = import_speechbrain(options.source, options.output, options.recipe)
    print(folder)
    return 0


def _read_aloud(options):
    from hyperconformer.corpora.librispeech import SPLITS
    from hyperconformer.corpora.synthetic.read_aloud import read_aloud

    minutes = read_aloud(
        options.texts,
        options.output,
        splits=options.splits or SPLITS,
        speakers=options.speakers,
        utterances=options.utterances,
        max_words=options.max_words,
    )
    print(f"{options.output}: {minutes:.1f} minutes of speech")
    return 0


def _shards(options):
    from hyperconformer.corpora import load_corpus, prepare
    from hyperconformer.corpora.shards import write_shards

    if not options.shard_mb > 0:  # before the corpus is prepared
        raise ValueError(f"--shard-mb must be above 0, got {options.shard_mb}")
    sys.path.append(os.getcwd())  # where a file of the user's own lies, for !name:
    corpus = load_corpus(f"corpus: {options.corpus}")
    folder = pathlib.Path(options.output) / "manifests"
    manifests = prepare(corpus, options.data, folder)
    number = write_shards(manifests, options.output, options.shard_mb)
    print(f"{options.output}: {', '.join(manifests)} in {number} shards")
    return 0


def _ablate(options):
    from hyperconformer.ablation.command import ablate

    return ablate(options)


def _mixers(options):
    from hyperconformer.mixers.registry import mixers_table

    print(mixers_table(), end="")
    return 0


def _stream(options):
    from hyperconformer.transcribe.streaming import StreamingASR, read_pcm, read_pieces

    _check_search(options)
    endpoint_s = 1.0 if options.endpoint_s is None else options.endpoint_s
    if not 0 < endpoint_s < math.inf:
        raise ValueError(f"--endpoint-s must be above 0 and finite, got {endpoint_s}")
    if options.files.count("-") > 1:
        raise ValueError("standard input can be read only once, got - several times")
    asr = StreamingASR.from_hparams(
        options.model,
        640 if options.chunk_ms is None else options.chunk_ms,
        options.left_context_ms,
        device=options.device,
        trusted=options.trusted,
        beam_size=options.beam or 1,
        endpoint_s=endpoint_s,
    )
    rate_hz = asr.model.sample_rate_hz

    def write(path):
        if path == "-":
            pieces = read_pcm(sys.stdin.buffer, rate_hz)
        else:
            pieces = read_pieces(path, rate_hz)
        _print_words(asr.partials(pieces), _prefix(options, path))

    return _for_each(options.files, write)


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


def _check_transcribe(options):
    """Refuse options that would have no effect, or say so."""
    given = {
        "--nbest": options.nbest != 1,
        "--hotwords": options.hotwords is not None,
        "--lm": options.lm not in (None, "none"),
        "--lm-weight": options.lm_weight is not None,
        "--format": options.format not in (None, "txt"),
        "--output": options.output is not None,
        "--overwrite": options.overwrite,
    }
    needs_stream = {
        "--chunk-ms": options.chunk_ms is not None,
        "--left-context-ms": options.left_context_ms is not None,
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


def _transcribe(options):
    _check_transcribe(options)
    if options.stream:
        return _stream(options)
    from tqdm import tqdm

    from hyperconformer.core.files import write_atomically
    from hyperconformer.transcribe.formats import FORMATS

    suffix = options.format or "txt"
    targets = _find_targets(options, suffix)
    asr = _load_asr(options, options.nbest)
    several = len(options.files) > 1
    bar = tqdm(options.files, unit="file", disable=not several, dynamic_ncols=True)
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


if __name__ == "__main__":
    sys.exit(main())
