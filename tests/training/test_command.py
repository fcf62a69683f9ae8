"""The command line of a training; what it trains, other tests tell."""

import pytest

from hyperconformer.cli.main import main
from hyperconformer.training.command import parse


@pytest.mark.parametrize(
    "given, minutes", [(["0.5"], 0.5), (["15"], 15), ([], 0), (["-1"], None)]
)
def test_minutes_between_checkpoints_may_be_fractions(given, minutes, capsys):
    for form in ("--ckpt_interval_minutes {}", "--ckpt_interval_minutes={}"):
        arguments = ["a.yaml", "--lr=3", "--precision", "bf16"]
        arguments += [part for x in given for part in form.format(x).split()]
        if minutes is None:
            with pytest.raises(SystemExit):
                parse(arguments)
            assert "ckpt_interval_minutes" in capsys.readouterr().err
            continue
        file, options, overrides = parse(arguments)
        assert (file, overrides, options.precision) == ("a.yaml", "lr: 3", "bf16")
        assert options.ckpt_interval_minutes == minutes
        assert ("ckpt_interval_minutes" in options.overridden_args) == bool(given)


def test_what_cannot_be_trained_is_named(capsys, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("task: vision\n")
    for arguments, message in (
        ([], "train needs a recipe or a YAML file"),
        (["hyperconformr"], "unknown recipe 'hyperconformr'; did you mean"),
        ([tmp_path / "no.yaml"], "no such YAML file"),
        ([other], "unknown task 'vision'"),
        (["--device", "nonsense", "lm"], "the device 'nonsense' cannot be used"),
        (["an4/streaming_rope", "--lerning_rate=1"], "unknown key 'lerning_rate'"),
    ):
        assert main(["train", *map(str, arguments)]) == 1
        assert message in capsys.readouterr().err
