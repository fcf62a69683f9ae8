"""Error rates of a recogniser on a manifest, with intervals."""

import math
import pathlib

from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from hyperconformer.bootstrap import error_rate_interval
from hyperconformer.corpora.manifest import read_manifest
from hyperconformer.text import normalize, write_references

COLUMNS = ("ID", "wav", "wrd")


def evaluate(asr, manifest, progress=True, on_error=None):
    """Recognise every utterance of a manifest and count the errors.

    References are taken in the Unicode form and the letter case in which the recogniser
    writes; a warning in the log says where that changes the case, and where they hold
    letters that it cannot write.

    Arguments
    ---------
    asr : hyperconformer.inference.ASR
        The recogniser.
    manifest : str or pathlib.Path
        CSV with the columns ``ID``, ``wav`` and ``wrd``, as the corpora write it.
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
    manifest = pathlib.Path(manifest)
    if not manifest.is_file():
        raise FileNotFoundError(f"no such manifest: {manifest}")
    rows = read_manifest(manifest)
    columns = [name for name in rows[0] if name] if rows else []
    if not set(COLUMNS) <= set(columns):
        raise ValueError(
            f"{manifest} should hold utterances with the columns ID, wav and wrd, but "
            f"holds {len(rows)} with: {', '.join(columns) or 'none'}"
        )
    # Before anything is recognised, which may take long.
    references = write_references(
        [row["wrd"] or "" for row in rows], asr.tokenizer, manifest
    )
    stats = {"WER": ErrorRateStats(), "CER": ErrorRateStats(split_tokens=True)}
    bar = tqdm(rows, unit="file", disable=not progress, dynamic_ncols=True)
    for number, (row, reference) in enumerate(zip(bar, references), start=1):
        try:
            _check_row(row)
            text = asr.transcribe_file(row["wav"]).text
        except ValueError as error:
            name = row["ID"] or f"number {number}"
            if on_error is None:
                raise ValueError(f"{manifest}: utterance {name}: {error}") from error
            on_error(name, str(error))
            continue
        # A recogniser may spell a letter and its accent as two tokens.
        words = [normalize(text).split()], [normalize(reference).split()]
        for stat in stats.values():
            stat.append([row["ID"]], *words)
    if not stats["WER"].scores:
        raise ValueError(f"{manifest}: none of its {len(rows)} utterances can be used")
    return stats


def _check_row(row):
    """Refuse a row that lacks something, or has more fields than there are columns."""
    missing = [name for name in COLUMNS if row[name] is None]
    missing += [name for name in ("ID", "wav") if row[name] == ""]
    if missing:
        raise ValueError(f"its row has no {' and no '.join(missing)}")
    if None in row:
        raise ValueError(
            "its row has more fields than there are columns; a text with a comma "
            "stands between quotes"
        )


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
    """A 95 % bootstrap interval of an error rate, see :mod:`hyperconformer.bootstrap`.

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
