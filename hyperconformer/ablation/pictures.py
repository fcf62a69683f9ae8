"""Pictures of an ablation."""

import math

from hyperconformer.core.extras import import_pyplot
from hyperconformer.evaluation.plots import read_train_log

# Metrics in percent; their differences are points.
PERCENT = ("WER", "CER")

# Measure of a length to its title, its factor to the unit and how it is printed.
LENGTH_MEASURES = {
    "forward_s": ("Forward, ms", 1e3, "{:.1f}"),
    "update_s": ("Forward and backward, ms", 1e3, "{:.1f}"),
    "kept_bytes": ("Kept for the backward pass, MB", 2**-20, "{:.1f}"),
}

# The same for what an arm costs.
COST_MEASURES = {
    "macs_per_audio_s": ("million multiply-adds for a second of speech", 1e-6),
    "train_s": ("seconds of training", 1.0),
}


def plot_cost(points, metric, picture):
    """An error rate against multiply-adds and against training time, an arm a point.

    Arguments
    ---------
    points : list of (str, dict, float, (float, float))
        Arm, its measures named in :data:`COST_MEASURES`, its error rate, and the
        error's interval over seeds; not a number for a single seed.
    metric : str
        What the error rate is.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    figure, all_axes = _figure(len(COST_MEASURES))
    for axes, (measure, (title, scale)) in zip(all_axes, COST_MEASURES.items()):
        for (name, costs, error, (low, high)), style in zip(
            points, _styles(len(points))
        ):
            if costs.get(measure) is None:
                continue
            axes.errorbar(
                [costs[measure] * scale],
                [error],
                [[error - low], [high - error]],
                linestyle="none",
                fillstyle="none",  # so that points that coincide are seen
                label=name,
                **style,
            )
        axes.set(xlabel=title, ylabel=_with_unit(metric))
    _finish(figure, all_axes, picture)


def plot_curves(logs, metric, picture):
    """Validation loss and error against updates: the mean over seeds of every arm.

    Arguments
    ---------
    logs : dict of str to list of pathlib.Path
        Arm to the training logs of its seeds.
    metric : str
        What error.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    names = list(dict.fromkeys(("loss", metric)))
    figure, all_axes = _figure(len(names))
    for (arm, files), style in zip(logs.items(), _styles(len(logs))):
        columns = [read_train_log(file) for file in files]
        for axes, name in zip(all_axes, names):
            curves = [column[f"valid {name}"] for column in columns]
            updates = columns[0]["updates"]
            points = min(map(len, [*curves, updates]))
            mean = [sum(values) / len(curves) for values in zip(*curves)][:points]
            axes.plot(updates[:points], mean, label=arm, **style)
            axes.set(xlabel="updates", ylabel=f"validation {_with_unit(name)}")
    _finish(figure, all_axes, picture)


def plot_axis(lines, axis, metric, picture):
    """An error rate against a number that was varied, seeds as dots.

    Arguments
    ---------
    lines : dict of str to list of (float, list of float)
        The rest of the arm to values of the axis and the error rates of the seeds.
    axis, metric : str
        Names of both.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    figure, (axes,) = _figure(1)
    for (name, points), style in zip(lines.items(), _styles(len(lines))):
        points = sorted(points)
        means = [sum(values) / len(values) for _, values in points]
        places = [place for place, _ in points]
        (line,) = axes.plot(places, means, label=name, **style)
        for place, values in points:
            axes.plot([place] * len(values), values, ".", color=line.get_color())
    axes.set(xlabel=axis, ylabel=_with_unit(metric))
    places = sorted({place for points in lines.values() for place, _ in points})
    if places[0] > 0 and places[-1] / places[0] > 4:
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
    _finish(figure, [axes], picture)


def plot_search(curves, metric, picture):
    """The expected best error against the number of trials.

    Arguments
    ---------
    curves : dict of str to list of float
        Arm to the expected best of 1, 2, ... trials.
    metric : str
        What error.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    figure, (axes,) = _figure(1)
    for (name, curve), style in zip(curves.items(), _styles(len(curves))):
        axes.plot(range(1, len(curve) + 1), curve, label=name, **style)
    axes.set(xlabel="trials", ylabel=f"expected best validation {_with_unit(metric)}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(figure, [axes], picture)


def plot_lengths(lengths, picture):
    """Time and memory against the length of an utterance, both axes logarithmic.

    Arguments
    ---------
    lengths : dict of str to list of dict
        Arm to its ``{"audio_s", "forward_s", "update_s", "kept_bytes"}``.
    picture : str or pathlib.Path
        Where the PNG goes.
    """
    figure, all_axes = _figure(len(LENGTH_MEASURES))
    for (name, points), style in zip(lengths.items(), _styles(len(lengths))):
        places = [point["audio_s"] for point in points]
        for axes, (measure, (title, scale, _)) in zip(
            all_axes, LENGTH_MEASURES.items()
        ):
            values = [point[measure] * scale for point in points]
            axes.plot(places, values, label=name, **style)
            axes.set(
                xlabel="seconds of speech", ylabel=title, xscale="log", yscale="log"
            )
            # The lengths that were measured, rather than powers of ten.
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_xticks([], minor=True)
    _finish(figure, all_axes, picture)


def _with_unit(metric):
    return f"{metric} (%)" if metric in PERCENT else metric


def _figure(columns):
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(
        1, columns, figsize=(5.5 * columns, 4), squeeze=False
    )
    return figure, list(axes[0])


def _styles(count):
    """Markers that tell more arms apart than there are colours."""
    markers = "osv^D<>pP*Xh"
    return [{"marker": markers[number % len(markers)]} for number in range(count)]


def _finish(figure, all_axes, picture):
    pyplot = import_pyplot()
    for axes in all_axes:
        axes.grid(alpha=0.3)
    handles, labels = all_axes[-1].get_legend_handles_labels()
    columns = 3 if len(all_axes) > 1 else 2
    rows = math.ceil(len(labels) / columns)
    figure.tight_layout(rect=(0, 0.06 * rows, 1, 1))
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize="small")
    figure.savefig(picture, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
