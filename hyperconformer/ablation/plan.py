"""From an ablation's YAML file to its runs."""

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import sys

from ruamel.yaml import YAML

from hyperconformer.config import read_config
from hyperconformer.core.messages import unknown
from hyperconformer.core.shipped import find_recipe
from hyperconformer.core.text import read_text
from hyperconformer.encoders.layer_mixers import layer_mixers, naming_layer
from hyperconformer.encoders.stack import build_encoder_mixer
from hyperconformer.mixers.registry import check_options

# What a training of each `task` measures on the validation set after every epoch.
METRICS = {
    "asr": ("WER", "CER", "loss"),
    "language_model": ("loss", "token perplexity", "word perplexity"),
}

# What trains, after the interpreter: the command line, wherever it is installed.
TRAIN = ("-m", "hyperconformer.cli", "train")

# More epochs than any budget of seconds lasts.
MANY_EPOCHS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Search:
    """How to look for good hyperparameters within each arm.

    ``space`` maps a dotted name to a list of choices, or to ``{low, high}`` with
    ``log: true`` or ``step`` where wanted.
    """

    sampler: str
    trials: int
    space: dict
    seed: int = 0
    storage: str | None = None


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What an ablation's YAML file says; see ``docs/ablations.md``."""

    name: str
    base: pathlib.Path
    about: str = ""
    set: dict = dataclasses.field(default_factory=dict)
    axes: dict = dataclasses.field(default_factory=dict)
    combinations: tuple = ({},)
    exclude: tuple = ()
    seeds: tuple = (1986,)
    budget: dict = dataclasses.field(default_factory=dict)
    metric: str = "WER"
    baseline: dict | None = None
    margin: float = 0.0
    search: Search | None = None

    def arms(self):
        """Every combination of the axes that is not excluded, as dotted overrides."""
        values = [axis_values(name, axis) for name, axis in self.axes.items()]
        arms = [
            {**dict(zip(self.axes, chosen)), **combination}
            for combination in self.combinations
            for chosen in itertools.product(*values)
        ]
        return [
            arm for arm in arms if not any(_matches(arm, rule) for rule in self.exclude)
        ]

    def run(self, overrides, seed, extra=()):
        """A run of one arm, or of one point of the search space."""
        shared = {**self.set, **_budget_overrides(self.budget)}
        return Run(self.base, {**shared, **overrides, "seed": seed}, extra)

    def baseline_of(self, arm):
        """The arm to compare an arm with; None without a baseline.

        It has the baseline's values, and the arm's own on every other axis. Of
        several such arms it is the one that changes least.
        """
        if self.baseline is None:
            return None
        kept = {name: arm[name] for name in self.axes if name not in self.baseline}
        fits = [
            other for other in self.arms() if _matches(other, {**self.baseline, **kept})
        ]
        return min(fits, key=len, default=None)


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the training command.

    Arguments
    ---------
    base : pathlib.Path
        The YAML file.
    overrides : dict
        Dotted names to values.
    extra : tuple of str
        Arguments from the command line for every run, for instance ``--device=cuda``.
    """

    base: pathlib.Path
    overrides: dict
    extra: tuple = ()

    @property
    def key(self):
        """What identifies the run: a hash of all that it is told to do.

        Where data lie, and comments, do not count; so two ablations that share a run
        share its result, and a changed base file makes another run.
        """
        digest = hashlib.sha256()
        asked = {k: v for k, v in self.overrides.items() if k != "data_folder"}
        for event in YAML().parse(io.StringIO(read_config(self.base, asked))):
            value = getattr(event, "value", ""), getattr(event, "tag", "")
            digest.update(repr((type(event).__name__, value)).encode())
        for argument in self.extra:
            if not argument.startswith("--data_folder="):
                digest.update(argument.encode())
        return digest.hexdigest()[:12]

    def command(self, output_folder):
        """What a user would type, as a list of words."""
        return [
            sys.executable,
            *TRAIN,
            str(self.base),
            *(f"--{key}={as_argument(value)}" for key, value in self.overrides.items()),
            *self.extra,
            f"--output_folder={output_folder}",
        ]


def read_ablation(path):
    """Read and check an ablation's YAML file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file; its ``base`` is relative to it, or the name of a shipped recipe.

    Returns
    -------
    Ablation

    Raises
    ------
    FileNotFoundError
        If the file or its base does not exist.
    ValueError
        If a key is unknown, here or in the base, or a part is not as it must be: what
        can be known before anything runs, mixers and their options included.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such YAML file: {path}")
    content = YAML(typ="safe").load(read_text(path))
    if not isinstance(content, dict) or "base" not in content:
        raise ValueError(f"{path} must hold keys and values, among them `base`")
    known = [field.name for field in dataclasses.fields(Ablation)]
    _check_keys(path, content, [name for name in known if name != "name"])
    try:
        base = find_recipe(content["base"], path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from error
    content["base"] = pathlib.Path(os.path.normpath(base))
    for name in ("set", "axes", "budget", "baseline", "search"):
        if name in content and not isinstance(content[name], dict):
            raise ValueError(
                f"{path}: {name} must hold keys and values, got {content[name]!r}"
            )
    if "search" in content:
        names = [field.name for field in dataclasses.fields(Search)]
        _check_keys(f"{path}: search", content["search"], names)
        missing = {"sampler", "trials", "space"} - set(content["search"])
        if missing:
            raise ValueError(f"{path}: search needs {', '.join(sorted(missing))} too")
        trials = content["search"]["trials"]
        if not _is_whole(trials, 1):
            raise ValueError(
                f"{path}: trials of a search must be a whole number from 1 on, "
                f"got {trials!r}"
            )
        content["search"] = Search(**content["search"])
    for name in ("combinations", "exclude", "seeds"):
        if name in content:
            if not isinstance(content[name], list):
                raise ValueError(
                    f"{path}: {name} must be a list, got {content[name]!r}"
                )
            content[name] = tuple(content[name])
    ablation = Ablation(name=path.stem, **content)
    seeds = ablation.seeds
    if not seeds or not all(_is_whole(seed, 0) for seed in seeds):
        raise ValueError(
            f"{path}: seeds must be whole numbers from 0 on, at least one, got "
            f"{list(seeds)}"
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: a seed stands twice in {list(seeds)}")
    arms = ablation.arms()
    if not arms:
        raise ValueError(f"{path}: nothing is left to run; see axes and exclude")
    for arm in arms:  # a mistake is better found now than in each run
        for point in _points(ablation.search):
            try:
                _check_run(ablation.run({**arm, **point}, seeds[0]), ablation.metric)
            except ValueError as error:
                raise ValueError(
                    f"{path}: {label({**arm, **point})}: {error}"
                ) from error
    if not (_is_number(ablation.margin) and 0 <= ablation.margin < math.inf):
        raise ValueError(
            f"{path}: margin must be a number from 0 on, in the unit of "
            f"{ablation.metric}, got {ablation.margin!r}"
        )
    if ablation.baseline is not None and all(
        ablation.baseline_of(arm) is None for arm in arms
    ):
        raise ValueError(f"{path}: no run is the baseline {ablation.baseline}")
    return ablation


def planned_runs(ablation, extra=()):
    """The runs that are known in advance: all, unless there is a search.

    Arguments
    ---------
    ablation : Ablation
        What to vary.
    extra : tuple of str
        Arguments for every run.

    Returns
    -------
    list of (dict, Run)
        Each with its arm. A seed is tried for all arms before the next seed, so that
        what an interrupted ablation has is balanced.
    """
    return [
        (arm, ablation.run(arm, seed, extra))
        for seed in ablation.seeds
        for arm in ablation.arms()
    ]


def axis_values(name, axis):
    """The values of an axis: a list, or a range with both ends.

    Arguments
    ---------
    name : str
        For messages.
    axis : list or dict
        ``[a, b]``, ``{from, to, step}``, or ``{from, to, count}`` for equal ratios.

    Returns
    -------
    list

    Raises
    ------
    ValueError
        If it is neither, or is empty.

    Example
    -------
    >>> axis_values("nhead", {"from": 2, "to": 8, "step": 3})
    [2, 5, 8]
    >>> axis_values("d_ffn", {"from": 32, "to": 128, "count": 3})
    [32, 64, 128]
    """
    if isinstance(axis, list) and axis:
        return axis
    if isinstance(axis, dict) and set(axis) == {"from", "to", "step"}:
        count = math.floor((axis["to"] - axis["from"]) / axis["step"] + 1e-9) + 1
        if count > 0:
            return [axis["from"] + axis["step"] * number for number in range(count)]
    if isinstance(axis, dict) and set(axis) == {"from", "to", "count"}:
        first, last, count = axis["from"], axis["to"], axis["count"]
        if first > 0 and last > 0 and count > 1:
            ratio = (last / first) ** (1 / (count - 1))
            values = [first * ratio**number for number in range(count)]
            whole = isinstance(first, int) and isinstance(last, int)
            return [
                round(value) if whole else float(f"{value:.6g}") for value in values
            ]
    raise ValueError(
        f"axis {name!r} must be a list of values, a range {{from, to, step}}, or one "
        f"of equal ratios {{from, to, count}}, got {axis!r}"
    )


def as_argument(value):
    """A value as it is typed after ``--key=``.

    Arguments
    ---------
    value : object
        Plain YAML.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If it holds ``=``, at which SpeechBrain divides arguments.

    Example
    -------
    >>> as_argument({"tied": True}), as_argument("hypermixing"), as_argument(None)
    ('{"tied": true}', 'hypermixing', 'null')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    if "=" in text:
        raise ValueError(f"a value on the command line must not hold '=', got {text!r}")
    return text


def label(overrides):
    """Overrides in few words.

    Arguments
    ---------
    overrides : dict
        Dotted names to values.

    Returns
    -------
    str

    Example
    -------
    >>> label({"attention_type": "hypermixing", "mixer_options.tied": True})
    'hypermixing, tied=true'
    """
    words = [
        value
        if isinstance(value, str)
        else f"{key.split('.')[-1]}={as_argument(value)}"
        for key, value in overrides.items()
    ]
    return ", ".join(words) or "base"


def _budget_overrides(budget):
    """What makes training stop after the budget and not before."""
    if not budget and isinstance(budget, dict):
        return {}
    if isinstance(budget, dict) and set(budget) == {"updates"}:
        updates = budget["updates"]  # an epoch has one at least
        if _is_whole(updates, 1):
            return {"max_updates": updates, "number_of_epochs": updates}
    if isinstance(budget, dict) and set(budget) == {"seconds"}:
        seconds = budget["seconds"]
        if _is_number(seconds) and 0 < seconds < math.inf:
            return {"max_train_s": seconds, "number_of_epochs": MANY_EPOCHS}
    raise ValueError(
        "budget must be {updates}, a whole number from 1 on, or {seconds}, a number "
        f"above 0, got {budget!r}"
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value, least):
    return _is_number(value) and isinstance(value, int) and value >= least


def _points(search):
    """Points that hold, one name after the other, every value that a search may try.

    Ranges count by their ends. Without a search there is one point, the empty one.
    """
    if search is None:
        return [{}]
    points = []
    for name, choice in search.space.items():
        if isinstance(choice, dict):
            choice = [choice[end] for end in ("low", "high") if end in choice]
        # What is neither, the search itself refuses.
        points += [
            {name: value} for value in (choice if isinstance(choice, list) else ())
        ]
    return points or [{}]


def _check_run(run, metric):
    """Refuse an unknown key, metric or mixer, and options that it does not take."""
    config = YAML(typ="rt").load(read_config(run.base, run.overrides))
    metrics = METRICS.get(config.get("task", "asr"), ())
    if metric not in metrics:
        raise ValueError(unknown("metric", metric, metrics))
    mixer, options = config.get("attention_type"), config.get("mixer_options")
    layers = config.get("num_encoder_layers", 1)
    listed = mixer if isinstance(mixer, list) else [mixer]
    if isinstance(mixer, dict):
        listed = list(mixer.values())
    # One by `!name:` may stand where only training finds it.
    known = all(isinstance(one, (str, int)) for one in listed)
    if not (known and _is_whole(layers, 1)):
        return
    chosen = layer_mixers(mixer, options, layers)
    sizes = [config.get(key) for key in ("d_model", "nhead", "d_ffn")]
    for index, (mixer, options) in enumerate(chosen):
        with naming_layer(index, chosen):
            check_options(mixer, options)
            if all(_is_whole(size, 1) for size in sizes):
                build_encoder_mixer(
                    mixer,
                    d_model=sizes[0],
                    num_heads=sizes[1],
                    d_ffn=sizes[2],
                    dropout=0.0,
                    causal=False,
                    options=options,
                )


def _matches(overrides, rule):
    return all(
        key in overrides and overrides[key] == value for key, value in rule.items()
    )


def _check_keys(where, content, known):
    for key in content:
        if key not in known:
            raise ValueError(f"{where}: {unknown('key', key, sorted(known))}")
