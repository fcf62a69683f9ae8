"""Pictures of results."""

import pathlib
import re

from hyperconformer.core.extras import import_pyplot


def read_train_log(path):
    """Read SpeechBrain's ``train_log.txt``.

    Arguments
    ---------
    path : str or pathlib.Path
        The log.

    Returns
    -------
    dict of str to list of float
        A column each: ``epoch``, ``lr``, ``train loss``, ``valid WER``, ...

    Example
    -------
    >>> import tempfile
    >>> log = pathlib.Path(tempfile.mkdtemp()) / "train_log.txt"
    >>> _ = log.write_text("epoch: 1, lr: 1.0e-03 - valid WER: 40.0\\n")
    >>> read_train_log(log)["valid WER"]
    [40.0]
    """
    # A run killed between an epoch's line and its checkpoint writes that line again.
    lines = {}
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("epoch:"):
            lines[line.split(",")[0]] = line
    columns = {}
    for line in lines.values():
        for name, value in re.findall(r"([A-Za-z][\w ]*): ([-+.\deE]+|nan|inf)", line):
            columns.setdefault(name.strip(), []).append(float(value))
    return columns


def read_test_log(path):
    """Read the results of the sets from SpeechBrain's ``train_log.txt``.

    Arguments
    ---------
    path : str or pathlib.Path
        The log.

    Returns
    -------
    dict of str to dict of str to float
        Set to its ``loss``, ``WER`` and ``CER``, of the last time that it was decoded.

    Example
    -------
    >>> import tempfile
    >>> log = pathlib.Path(tempfile.mkdtemp()) / "train_log.txt"
    >>> _ = log.write_text("test set: test_640ms - test loss: 0.1, test WER: 9.5\\n")
    >>> read_test_log(log)
    {'test_640ms': {'loss': 0.1, 'WER': 9.5}}
    """
    results = {}
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        name, _, stats = line.removeprefix("test set: ").partition(" - ")
        if line.startswith("test set: "):
            pairs = re.findall(r"test (\w+): ([-+.\deE]+|nan|inf)", stats)
            results[name] = {key: float(value) for key, value in pairs}
    return results


def plot_training(log, picture):
    """Draw the losses, and error rates or perplexities, against epochs.

    Arguments
    ---------
    log : str or pathlib.Path
        SpeechBrain's ``train_log.txt``.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    pyplot = import_pyplot()
    columns = read_train_log(log)
    figure, (losses, measures) = pyplot.subplots(1, 2, figsize=(10, 4))
    names = ("train loss", "valid loss")
    for name in names:
        losses.plot(columns["epoch"], columns[name], label=name.split()[0])
    # CTC-CRF's loss may be negative, which a logarithmic axis would hide.
    positive = all(loss > 0 for name in names for loss in columns[name])
    losses.set(xlabel="epoch", ylabel="loss", yscale="log" if positive else "linear")
    for name in columns:
        kind, _, measure = name.partition(" ")
        if kind == "valid" and measure != "loss":
            measures.plot(columns["epoch"], columns[name], label=measure)
    if "valid WER" in columns:
        measures.set(xlabel="epoch", ylabel="validation error (%)", ylim=(0, 105))
        measures.axhline(10, color="gray", linewidth=0.5, linestyle=":")
    else:
        measures.set(xlabel="epoch", ylabel="validation perplexity", yscale="log")
    for axes in (losses, measures):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def plot_latency(curves, picture):
    """Draw error rates against latency, beside those of the whole utterance.

    Arguments
    ---------
    curves : dict of str to dict of (float or None) to float
        Model to the word error rate (%) at each latency in milliseconds; None is the
        whole utterance.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, rates in curves.items():
        points = sorted((ms, rate) for ms, rate in rates.items() if ms is not None)
        (line,) = axes.plot(*zip(*points), "o-", label=name)
        if None in rates:
            axes.axhline(rates[None], color=line.get_color(), linestyle="--", alpha=0.6)
    axes.set(
        xlabel="latency (ms); dashed: the whole utterance",
        ylabel="word error rate (%)",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
