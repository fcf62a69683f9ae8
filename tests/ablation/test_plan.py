"""From an ablation's YAML file to its runs."""

import pathlib

import pytest
from ruamel.yaml import YAML

from hyperconformer.ablation.plan import planned_runs, read_ablation
from hyperconformer.config import read_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
BASE = """
seed: 0
output_folder: out
data_folder: data
lr: 0.1
nhead: 2
d_model: 16
d_ffn: 32
task: asr
mixer: hypermixing
attention_type: hypermixing
mixer_options: {}
max_updates: null
max_train_s: null
number_of_epochs: 3
"""


@pytest.fixture
def write(tmp_path):
    """A base file, and a function that writes an ablation of it."""
    (tmp_path / "base.yaml").write_text(BASE)

    def write(text):
        path = tmp_path / "ablation.yaml"
        path.write_text(f"base: base.yaml\n{text}")
        return path

    return write


def arms(path):
    return read_ablation(path).arms()


def test_the_base_may_be_a_shipped_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: hyperconformer\n")
    assert read_ablation(path).base.samefile(ROOT / "hparams/hyperconformer.yaml")
    path.write_text("base: hyperconformr\n")
    with pytest.raises(ValueError, match="mine.yaml: base: unknown recipe"):
        read_ablation(path)


def test_axes_are_crossed_with_combinations_and_thinned(write):
    found = arms(
        write(
            "axes: {nhead: {from: 2, to: 8, count: 3}, mixer_options.tied: [true]}\n"
            "combinations: [{lr: 0.1}, {lr: 0.2, mixer: other}]\n"
            "exclude: [{lr: 0.2, nhead: 4}, {nhead: 8, mixer: other}]\n"
        )
    )
    assert [(arm["nhead"], arm["lr"]) for arm in found] == [
        *((2, 0.1), (4, 0.1), (8, 0.1)),
        (2, 0.2),
    ]
    assert all(arm["mixer_options.tied"] for arm in found)


def test_seeds_take_turns_and_the_budget_is_an_override(write):
    ablation = read_ablation(
        write("axes: {nhead: [1, 2]}\nseeds: [5, 6]\nbudget: {updates: 7}\n")
    )
    runs = [run for _, run in planned_runs(ablation, ("--device=cpu",))]
    assert [(run.overrides["seed"], run.overrides["nhead"]) for run in runs] == [
        *((5, 1), (5, 2), (6, 1), (6, 2)),
    ]
    command = runs[0].command("OUT")
    assert command[1:] == [
        *("-m", "hyperconformer.cli", "train", str(ablation.base)),
        *("--max_updates=7", "--number_of_epochs=7"),
        *("--nhead=1", "--seed=5", "--device=cpu", "--output_folder=OUT"),
    ]
    timed = read_ablation(write("budget: {seconds: 30}\n"))
    assert planned_runs(timed)[0][1].overrides["max_train_s"] == 30


def test_the_key_depends_on_what_is_done_and_on_nothing_else(write):
    def key(text, extra=()):
        return planned_runs(read_ablation(write(text)), extra)[0][1].key

    path = write("").parent / "base.yaml"
    plain = key("axes: {lr: [0.2]}")
    assert plain == key("combinations: [{lr: 0.2}]\nabout: words\nmetric: CER")
    assert plain == key("set: {lr: 0.2, data_folder: elsewhere}")
    assert plain == key("set: {lr: 0.2}", ("--data_folder=elsewhere",))
    path.write_text("# words\n" + BASE.replace("lr: 0.1", "lr: 0.3  # more words"))
    assert plain == key("set: {lr: 0.2}")
    others = [
        key("set: {lr: 0.25}"),
        key("set: {lr: 0.2}\nseeds: [1]"),
        key("set: {lr: 0.2}\nbudget: {updates: 3}"),
        key("set: {lr: 0.2}", ("--precision=bf16",)),
    ]
    path.write_text(BASE.replace("nhead: 2", "nhead: 4"))
    others.append(key("set: {lr: 0.2}"))
    assert len({plain, *others}) == 6


def test_the_baseline_differs_in_what_it_names_alone(write):
    ablation = read_ablation(
        write(
            "axes: {nhead: [1, 2]}\nbaseline: {mixer: other}\n"
            "combinations: [{mixer: other}, {mixer: hypermixing, lr: 0.2}]\n"
        )
    )
    for arm in ablation.arms():
        assert ablation.baseline_of(arm) == {"nhead": arm["nhead"], "mixer": "other"}
    plain = read_ablation(write("combinations: [{lr: 0.2}, {}]\nbaseline: {}\n"))
    assert [plain.baseline_of(arm) for arm in plain.arms()] == [{}, {}]


@pytest.mark.parametrize(
    "text,message",
    [
        ("axis: {lr: [1]}", "unknown key 'axis'; did you mean 'axes'"),
        ("axes: {learning: [1]}", "unknown key 'learning'"),
        ("axes: {lr.peak: [1]}", "lr holds no keys"),
        ("axes: {lr: 1}", "axis 'lr' must be a list"),
        ("axes: {lr: []}", "axis 'lr' must be a list"),
        ("axes: {lr: {from: 1, to: 0, step: 1}}", "axis 'lr' must be a list"),
        ("budget: {hours: 1}", "budget must be"),
        ("set: {mixer: 'a=b'}\n", None),
        ("exclude: [{}]", "nothing is left to run"),
        ("baseline: {lr: 3}", "no run is the baseline"),
        ("search: {sampler: tpe, trials: 3, spice: {}}", "did you mean 'space'"),
        ("search: {sampler: tpe, trials: 3, space: {l: [1]}}", "unknown key 'l'"),
        ("search: {sampler: tpe, trials: 3}", "search needs space too"),
        ("search: {sampler: tpe, trials: 0, space: {lr: [1]}}", "trials of a search"),
        ("search: 3", "search must hold keys and values"),
        ("axes: [lr]", "axes must hold keys and values"),
        ("metric: BLEU", "unknown metric 'BLEU'; known: WER, CER, loss"),
        ("metric: wer", "unknown metric 'wer'"),
        ("metric: word perplexity", "unknown metric 'word perplexity'"),
        ("set: {task: language_model}", "unknown metric 'WER'.*token perplexity"),
        ("margin: -1", "margin must be a number from 0 on, in the unit of WER"),
        ("margin: wide", "margin must be a number"),
        ("seeds: []", "seeds must be whole numbers"),
        ("seeds: 3", "seeds must be a list"),
        ("seeds: [1, one]", "seeds must be whole numbers"),
        ("seeds: [1.5]", "seeds must be whole numbers"),
        ("seeds: [-1]", "seeds must be whole numbers"),
        ("seeds: [true]", "seeds must be whole numbers"),
        ("seeds: [1, 2, 1]", "a seed stands twice"),
        ("budget: {updates: 0}", "budget must be"),
        ("budget: {updates: -5}", "budget must be"),
        ("budget: {updates: 1.5}", "budget must be"),
        ("budget: {updates: many}", "budget must be"),
        ("budget: {seconds: 0}", "budget must be"),
        ("budget: {seconds: .inf}", "budget must be"),
        ("budget: {seconds: .nan}", "budget must be"),
        ("budget: 400", "budget must hold keys and values"),
        ("axes: {attention_type: [hypermixin]}", "did you mean 'hypermixing'"),
        ("axes: {mixer_options.tid: [true]}", "did you mean 'tied'"),
        ("axes: {mixer_options.tied: [yep]}", "'tied' .* must be bool, got 'yep'"),
        ("set: {mixer_options: [tied]}", "must be names and values"),
        ("axes: {nhead: [2, 5]}", "nhead=5: num_heads must divide"),
        (
            "search: {sampler: tpe, trials: 3, space: {attention_type: [RoPEMHA, no]}}",
            "unknown mixer 'no'",
        ),
    ],
)
def test_mistakes_are_named_before_anything_runs(write, text, message):
    if message is None:
        run = planned_runs(read_ablation(write(text)))[0][1]
        with pytest.raises(ValueError, match="must not hold '='"):
            run.command("OUT")
        return
    with pytest.raises(ValueError, match=message):
        read_ablation(write(text))


def test_missing_files_are_named(write):
    with pytest.raises(FileNotFoundError, match="no such YAML file"):
        read_ablation("none.yaml")
    path = write("")
    (path.parent / "base.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="base.yaml"):
        read_ablation(path)


def test_dotted_names_change_one_entry(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("mixer: !new:torch.nn.Linear\n  in_features: 3\noptions: {a: 1}\n")
    text = read_config(path, "mixer.in_features: 4\noptions.b: 2")
    tree = YAML().load(text)
    assert tree["mixer"]["in_features"] == 4 and tree["mixer"].tag.value.startswith("!")
    assert tree["options"] == {"a": 1, "b": 2}


@pytest.mark.integration
@pytest.mark.parametrize(
    "path", sorted((ROOT / "hparams/ablations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_shipped_ablations_can_be_read(path):
    ablation = read_ablation(path)
    assert ablation.about and ablation.seeds
    assert len({run.key for _, run in planned_runs(ablation)}) >= 2
