"""Error rates of a recogniser on a manifest, with intervals."""

import pathlib

from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.bootstrap import error_rate_interval
from hyperconformer.corpora import csv_manifests, jsonl_manifests


def evaluate(asr, manifest, progress=True):
    """Recognise every utterance of a manifest and count the errors.

    Arguments
    ---------
    asr : hyperconformer.inference.ASR
        The recogniser.
    manifest : str or pathlib.Path
        CSV with the columns ``ID``, ``wav`` and ``wrd``, as the corpora write it, or
        JSON Lines: see :mod:`hyperconformer.corpora.csv_manifests` and
        :mod:`hyperconformer.corpora.jsonl_manifests`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    dict of str to ErrorRateStats
        ``"WER"`` and ``"CER"``, with alignments.

    Raises
    ------
    FileNotFoundError
        If there is no such manifest.
    ValueError
        If it has other columns or no utterance, or an audio file cannot be used.
    """
    manifest = pathlib.Path(manifest)
    if not manifest.is_file():
        raise FileNotFoundError(f"no such manifest: {manifest}")
    reader = jsonl_manifests if "json" in manifest.suffix else csv_manifests
    utterances = reader.list_utterances(manifest)
    for utterance in utterances:
        if utterance.fault or utterance.audio is None:
            why = utterance.fault or "no audio"
            raise ValueError(f"{manifest}: {utterance.id}: {why} {utterance.detail}")
    stats = {"WER": ErrorRateStats(), "CER": ErrorRateStats(split_tokens=True)}
    bar = tqdm(utterances, unit="file", disable=not progress, dynamic_ncols=True)
    for utterance in bar:
        hypothesis = [asr.transcribe_file(utterance.audio).text.split()]
        for stat in stats.values():
            stat.append([utterance.id], hypothesis, [utterance.text.split()])
    return stats


def interval(stats):
    """A 95 % bootstrap interval of an error rate, see :mod:`hyperconformer.bootstrap`.

    Arguments
    ---------
    stats : ErrorRateStats
        With at least one utterance.

    Returns
    -------
    low, high : float
        In percent; both the rate itself where there is a single utterance.

    Example
    -------
    >>> stats = ErrorRateStats()
    >>> stats.append(["a", "b"], [["GO"], ["GO", "UP"]], [["GO"], ["GO", "ON"]])
    >>> low, high = interval(stats)
    >>> low <= stats.summarize("WER") <= high
    True
    """
    if len(stats.scores) == 1:
        return (stats.summarize("error_rate"),) * 2
    return error_rate_interval(
        {
            index: (score["num_ref_tokens"], score["num_edits"])
            for index, score in enumerate(stats.scores)
        }
    )
