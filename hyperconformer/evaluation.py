"""Error rates of a recogniser on a manifest, with intervals."""

import csv
import pathlib

from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.bootstrap import error_rate_interval


def evaluate(asr, manifest, progress=True):
    """Recognise every utterance of a manifest and count the errors.

    Arguments
    ---------
    asr : hyperconformer.inference.ASR
        The recogniser.
    manifest : str or pathlib.Path
        CSV with the columns ``ID``, ``wav`` and ``wrd``, as the corpora write it.
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
    with open(manifest, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {"ID", "wav", "wrd"}
    if not rows or not columns <= set(rows[0]):
        raise ValueError(
            f"{manifest} should hold utterances with the columns ID, wav and wrd, but "
            f"holds {len(rows)} with: {', '.join(rows[0]) if rows else 'none'}"
        )
    stats = {"WER": ErrorRateStats(), "CER": ErrorRateStats(split_tokens=True)}
    for row in tqdm(rows, unit="file", disable=not progress, dynamic_ncols=True):
        hypothesis = [asr.transcribe_file(row["wav"]).text.split()]
        for stat in stats.values():
            stat.append([row["ID"]], hypothesis, [row["wrd"].split()])
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
