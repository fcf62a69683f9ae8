"""Error rates of a recogniser on a manifest, with intervals."""

import csv
import pathlib

import numpy as np
from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

BOOTSTRAP_SAMPLES = 2000


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


def interval(stats, level=0.95, seed=0):
    """A bootstrap interval of an error rate, by drawing utterances anew.

    Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation", ICASSP 2004. Utterances of a speaker resemble each other, so that the
    interval is too narrow for other speakers.

    Arguments
    ---------
    stats : ErrorRateStats
        With at least one utterance.
    level : float
        Share of the drawings that lie inside.
    seed : int
        Of the drawings.

    Returns
    -------
    low : float
        In percent.
    high : float
        In percent.

    Example
    -------
    >>> stats = ErrorRateStats()
    >>> stats.append(["a", "b"], [["GO"], ["GO", "UP"]], [["GO"], ["GO", "ON"]])
    >>> low, high = interval(stats)
    >>> low <= stats.summarize("WER") <= high
    True
    """
    errors, lengths = np.array(
        [
            (
                score["insertions"] + score["deletions"] + score["substitutions"],
                score["num_ref_tokens"],
            )
            for score in stats.scores
        ]
    ).T
    drawn = np.random.default_rng(seed).integers(
        len(errors), size=(BOOTSTRAP_SAMPLES, len(errors))
    )
    rates = 100 * errors[drawn].sum(1) / np.maximum(lengths[drawn].sum(1), 1)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
