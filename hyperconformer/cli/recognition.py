"""Options of every command that recognises, and the recogniser that they ask for."""

import math
import pathlib

from hyperconformer.core.stream_lengths import CHUNK_MS, RIGHT_CONTEXT_MS

# Readings that a search keeps where it returns several.
BEAM = 50


def add_model_options(command, without="the model that comes with the package"):
    """Declare the options of a model; ``without`` is what is used without one."""
    command.add_argument(
        "--model",
        metavar="DIR",
        help="model folder, output folder of a training run, or owner/name on the "
        f"Hugging Face hub; without it {without}",
    )
    command.add_argument("--device", default="cpu", help="for instance cpu or cuda")
    add_trusted(command)


def add_trusted(command):
    """Declare ``--trusted``."""
    command.add_argument(
        "--trusted",
        action="store_true",
        help="let the model folder run code: only for your own",
    )


def add_options(command):
    """Declare them; ``command`` is the command's parser."""
    add_model_options(command)
    command.add_argument(
        "--beam",
        type=int,
        metavar="N",
        help="readings to keep in the search (50; 200 with a lexicon)",
    )
    command.add_argument(
        "--hotwords", metavar="FILE", help="words or phrases to favour, one a line"
    )
    command.add_argument(
        "--lm",
        metavar="PATH",
        help="language model: an ARPA file replaces the model folder's n-grams, the "
        "output folder of `train lm` rescores their readings, `none` leaves them out",
    )
    command.add_argument(
        "--lm-weight",
        type=float,
        metavar="W",
        help="weight of the language model (the model folder's; of another one 0.5)",
    )


def add_chunk_options(command, needs=None):
    """Declare the options of streams; ``needs`` is the option that they go with."""
    only = f"with {needs}: " if needs else ""
    meanings = {
        "chunk": f"length of a chunk, recognised at once ({CHUNK_MS})",
        "left-context": "how far to look back; attention needs it (all)",
        "right-context": "how far a chunk looks ahead, which adds to its latency "
        f"({RIGHT_CONTEXT_MS} with the default chunk, 0 with --chunk-ms)",
    }
    for name, meaning in meanings.items():
        command.add_argument(
            f"--{name}-ms", type=float, metavar="MS", help=only + meaning
        )


def load_asr(options, nbest=1):
    """The recogniser, with its search, that the options ask for."""
    from hyperconformer.transcribe.offline import ASR

    check_search(options, nbest)
    asr = ASR.from_hparams(
        source=options.model, device=options.device, trusted=options.trusted
    )
    use_search(asr, options, nbest)
    return asr


def use_search(asr, options, nbest=1):
    """Give a recogniser the search that the options ask for, if they do."""
    wants = (nbest != 1, options.beam, options.hotwords, options.lm)
    if any(wants) or options.lm_weight is not None:
        asr.use_search(_search(options, nbest, asr))


def check_search(options, nbest=1):
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


def _search(options, nbest, asr):
    from hyperconformer.search.ngram import ngram_search

    chosen = {}
    if options.hotwords:
        chosen["hotwords"] = _read_hotwords(options.hotwords)
    if options.beam is not None:
        chosen["beam_size"] = options.beam
    if nbest != 1:
        chosen["nbest"] = nbest
        chosen.setdefault("beam_size", max(BEAM, nbest))
    if options.lm and pathlib.Path(options.lm).is_dir():
        chosen.update(lm_folder=options.lm, rescore_weight=_weight(options))
        return ngram_search(asr.ngram, asr.recognizer, **chosen)
    return ngram_search(_ngrams(options, asr.ngram), asr.recognizer, **chosen)


def _read_hotwords(path):
    from hyperconformer.core.text import read_text

    hotwords = [line for line in read_text(path).splitlines() if line.strip()]
    if not hotwords:
        raise ValueError(f"--hotwords {path} holds no words")
    return hotwords


def _ngrams(options, ngram):
    """Options of a search: the n-grams that are named, else the model folder's."""
    if options.lm is None:
        if options.lm_weight is None:
            return ngram
        if not ngram:
            raise ValueError("--lm-weight needs a language model: name one with --lm")
        return {**ngram, "lm_weight": options.lm_weight}
    if options.lm == "none":
        return {}
    return {"arpa": options.lm, "lm_weight": _weight(options)}


def _weight(options):
    """Of a language model that the command line names."""
    return 0.5 if options.lm_weight is None else options.lm_weight
