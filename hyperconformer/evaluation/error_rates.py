"""Error rates of a recogniser on a manifest, with intervals."""

import math
import pathlib

from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.core.text import normalize, write_references
from hyperconformer.corpora import csv_manifests, jsonl_manifests
from hyperconformer.evaluation.bootstrap import error_rate_interval


def evaluate(asr, manifest, progress=True, on_error=None):
    """Recognise every utterance of a manifest and count the errors.

    References are taken in the Unicode form and the letter case in which the recogniser
    writes; a warning in the log says where that changes the case, and where they hold
    letters that it cannot write.

    Arguments
    ---------
    asr : hyperconformer.transcribe.offline.ASR
        The recogniser.
    manifest : str or pathlib.Path
        CSV with the columns ``ID``, ``wav`` and ``wrd``, as the corpora write it, or
        JSON Lines: see :mod:`hyperconformer.corpora.csv_manifests` and
        :mod:`hyperconformer.corpora.jsonl_manifests`.
    progress : bool
        Whether to show a progress bar.
    on_error : callable, optional
        Called with the ID of each row that cannot be used, and with why; the row is
        then left out. None = the first such row raises.

    Returns
    -------
    dict of str to ErrorRateStats
        ``"WER"`` and ``"CER"``, with alignments; :func:`summarize` gives the rates.

    Raises
    ------
    FileNotFoundError
        If there is no such manifest.
    ValueError
        If it has other columns or no utterance, or a row or its audio file cannot be
        used (with ``on_error``: none of them can).
    """
    utterances = list_utterances(manifest)
    # Before anything is recognised, which may take long.
    references = write_references(
        [utterance.text or "" for utterance in utterances], asr.tokenizer, manifest
    )
    stats = {"WER": ErrorRateStats(), "CER": ErrorRateStats(split_tokens=True)}
    # None: none either where standard error is no terminal, as in a log.
    hidden = None if progress else True
    bar = tqdm(utterances, unit="file", disable=hidden, dynamic_ncols=True)
    for utterance, reference in zip(bar, references):
        try:
            if utterance.fault or utterance.audio is None:
                why = utterance.fault or "no audio"
                raise ValueError(f"{why} {utterance.detail}".strip())
            text = asr.transcribe_file(utterance.audio).text
        except ValueError as error:
            if on_error is None:
                raise ValueError(
                    f"{manifest}: utterance {utterance.id}: {error}"
                ) from error
            on_error(utterance.id, str(error))
            continue
        # A recogniser may spell a letter and its accent as two tokens.
        words = [normalize(text).split()], [normalize(reference).split()]
        for stat in stats.values():
            stat.append([utterance.id], *words)
    if not stats["WER"].scores:
        count = len(utterances)
        raise ValueError(f"{manifest}: none of its {count} utterances can be used")
    return stats


def list_utterances(manifest):
    """Read a manifest as :func:`evaluate` does.

    Arguments
    ---------
    manifest : str or pathlib.Path
        CSV or JSON Lines.

    Returns
    -------
    list of hyperconformer.corpora.manifest.Utterance

    Raises
    ------
    FileNotFoundError
        If there is no such manifest.
    ValueError
        If it has other columns.
    """
    manifest = pathlib.Path(manifest)
    if not manifest.is_file():
        raise FileNotFoundError(f"no such manifest: {manifest}")
    reader = jsonl_manifests if "json" in manifest.suffix else csv_manifests
    return reader.list_utterances(manifest)


def summarize(stats):
    """SpeechBrain's summary, in which a rate without references is not a number.

    SpeechBrain gives 0 % where the references hold no words, whatever was inserted.

    Arguments
    ---------
    stats : ErrorRateStats
        Changed so that the alignments that it writes say the same.

    Returns
    -------
    dict
        As ``ErrorRateStats.summarize``.

    Example
    -------
    >>> stats = ErrorRateStats()
    >>> stats.append(["noise"], [["GO"]], [[]])
    >>> stats.summarize("WER"), summarize(stats)["WER"]
    (0.0, nan)
    """
    summary = stats.summarize()
    if not summary["num_scored_tokens"]:
        summary["WER"] = summary["error_rate"] = math.nan
    for score in stats.scores:
        if not score["num_ref_tokens"] and score["num_edits"]:
            score["WER"] = math.nan
    return summary


def interval(stats):
    """A 95 % interval of an error rate, by :mod:`hyperconformer.evaluation.bootstrap`.

    Arguments
    ---------
    stats : ErrorRateStats
        With at least one utterance.

    Returns
    -------
    low, high : float
        In percent; both the rate itself where there is a single utterance, and not a
        number where the references hold no words.

    Example
    -------
    >>> stats = ErrorRateStats()
    >>> stats.append(["a", "b"], [["GO"], ["GO", "UP"]], [["GO"], ["GO", "ON"]])
    >>> low, high = interval(stats)
    >>> low <= stats.summarize("WER") <= high
    True
    """
    if len(stats.scores) == 1:
        return (summarize(stats)["error_rate"],) * 2
    return error_rate_interval(
        {
            index: (score["num_ref_tokens"], score["num_edits"])
            for index, score in enumerate(stats.scores)
        }
    )
