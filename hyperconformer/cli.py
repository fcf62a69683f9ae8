"""The command ``hyperconformer``."""

import argparse
import os
import pathlib
import sys
import warnings


def main(arguments=None):
    """Run a command.

    Arguments
    ---------
    arguments : list of str, optional
        The command line without the program; None takes the real one.

    Returns
    -------
    int
        Exit code: 0 done, 1 an input failed.
    """
    parser = argparse.ArgumentParser(
        prog="hyperconformer", description="Speech recognition with HyperConformer."
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
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.run(options)
    except (FileNotFoundError, ValueError) as error:
        print(f"hyperconformer: {error}", file=sys.stderr)
        return 1


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
        default="txt",
        help="json has all: words with times and confidences, and the n best readings",
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
        default=640,
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
        default=1.0,
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
        "--nbest", type=int, default=1, metavar="N", help="readings to return"
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


def _load_asr(options):
    from hyperconformer.inference import ASR

    asr = ASR.from_hparams(
        source=options.model, device=options.device, trusted=options.trusted
    )
    wants = (options.nbest != 1, options.beam, options.hotwords, options.lm)
    if any(wants) or options.lm_weight is not None:
        asr.use_search(_search(options, asr.ngram))
    return asr


def _search(options, ngram):
    from hyperconformer.decoding import CTCSearcher

    hotwords = []
    if options.hotwords:
        from hyperconformer.text import read_text

        lines = read_text(options.hotwords).splitlines()
        hotwords = [line for line in lines if line.strip()]
    lm = _language_model(options, ngram)
    if not (lm or hotwords or options.beam) and options.nbest == 1:
        return None  # the model's own greedy search
    return CTCSearcher(
        beam_size=options.beam or max(50, options.nbest),
        nbest=options.nbest,
        hotwords=hotwords,
        **lm,
    )


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

    from hyperconformer.evaluation import evaluate, interval, summarize

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
    from hyperconformer.info import describe

    print(describe(), end="")
    return 0


def _convert(options):
    from hyperconformer.convert import (
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
    from hyperconformer.corpora.read_aloud import read_aloud

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
    from hyperconformer.registry import mixers_table

    print(mixers_table(), end="")
    return 0


def _stream(options):
    from hyperconformer.streaming import StreamingASR, read_pcm, read_pieces

    wants_lm = options.lm not in (None, "none") or options.lm_weight is not None
    if options.nbest != 1 or options.hotwords or wants_lm or options.format != "txt":
        raise ValueError("--stream goes without --nbest, --hotwords, --lm and --format")
    asr = StreamingASR.from_hparams(
        options.model,
        options.chunk_ms,
        options.left_context_ms,
        device=options.device,
        trusted=options.trusted,
        beam_size=options.beam or 1,
        endpoint_s=options.endpoint_s,
    )
    rate_hz = asr.model.sample_rate_hz
    for path in options.files:
        if path == "-":
            pieces = read_pcm(sys.stdin.buffer, rate_hz)
        else:
            pieces = read_pieces(path, rate_hz)
        shown = 0
        for partial in asr.partials(pieces):
            for word in partial.words[shown:]:
                print(word.text, end=" ", flush=True)
            shown = len(partial.words)
            if partial.ended:
                print(flush=True)
                shown = 0
    return 0


def _transcribe(options):
    if options.stream:
        return _stream(options)
    from tqdm import tqdm

    from hyperconformer.transcription import FORMATS

    asr = _load_asr(options)
    write = FORMATS[options.format]
    several = len(options.files) > 1
    failed = []
    bar = tqdm(options.files, unit="file", disable=not several, dynamic_ncols=True)
    for path in bar:
        try:
            text = write(path, asr.transcribe_file(path))
        except ValueError as error:
            failed.append(path)
            bar.write(f"hyperconformer: {error}", file=sys.stderr)
            continue
        if several and options.format == "txt":
            text = f"{path}\t{text}"
        bar.write(text, file=sys.stdout, end="")
    if failed:
        print(
            f"hyperconformer: {len(failed)} of {len(options.files)} files failed: "
            + ", ".join(failed),
            file=sys.stderr,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
