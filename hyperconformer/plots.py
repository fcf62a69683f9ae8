"""Pictures of results."""

import pathlib
import re


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


def plot_training(log, picture):
    """Draw the losses, and error rates or perplexities, against epochs.

    Arguments
    ---------
    log : str or pathlib.Path
        SpeechBrain's ``train_log.txt``.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = read_train_log(log)
    figure, (losses, measures) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in ("train loss", "valid loss"):
        losses.plot(columns["epoch"], columns[name], label=name.split()[0])
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")
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
