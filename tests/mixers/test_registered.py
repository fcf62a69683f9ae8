"""A mixer from outside is held to the contract by being registered, and by no more."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A pytest plugin: it is imported before the tests are collected.
PLUGIN = '''
import torch
from torch import nn

from hyperconformer import TokenMixer, register_mixer
from hyperconformer.mixers.base import frames_of_step


class Running(TokenMixer):
    """Adds the mean over the frames so far."""

    causal = True
    streamable = True
    FORGETS = False

    def __init__(self, d_model: int, num_heads: int, *, gain: float = 1.0):
        super().__init__(d_model)
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        self.check_inputs(x, padding_mask, chunk, state)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        sums, count = wide.cumsum(1), torch.arange(1, x.shape[1] + 1)[:, None]
        if state is not None:
            new = frames_of_step(x, padding_mask, state["frames_seen"])
            count = count + state["frames_seen"][:, None, None]
            sums = sums + state["sums"].unsqueeze(1)
        y = (wide + self.gain * sums / count).to(x.dtype)
        if state is None:
            return y, None
        last = sums[:, -1].to(state["sums"].dtype)
        after = {
            "frames_seen": state["frames_seen"] + new,
            "sums": torch.zeros_like(last) if self.FORGETS else last,
        }
        return y, after

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        device = self.gain.device if device is None else device
        dtype = self.gain.dtype if dtype is None else dtype
        return {
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "sums": torch.zeros(batch_size, self.d_model, dtype=dtype, device=device),
        }


@register_mixer("right_running_mean")
class Right(Running):
    pass


@register_mixer("wrong_running_mean")
class Wrong(Running):
    FORGETS = True
'''


def run_contract(tmp_path, name, *options, plugin=PLUGIN):
    """The tests of the contract that bear a mixer's name."""
    (tmp_path / "running_mean.py").write_text(plugin)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    files = [f"tests/mixers/test_{kind}.py" for kind in ("contract", "streaming")]
    command = [sys.executable, "-m", "pytest", "-p", "running_mean", "-k", name]
    return subprocess.run(
        [*command, "-q", "-rs", "-p", "no:cacheprovider", *files, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    ).stdout


def test_a_right_mixer_passes(tmp_path):
    said = run_contract(tmp_path, "right_running_mean", "-m", "not slow")
    assert " failed" not in said and " error" not in said, said
    assert int(said.split(" passed")[0].split()[-1]) >= 25, said
    assert "SKIPPED" not in said, said


def test_a_wrong_one_fails(tmp_path):
    test = "test_streams_apart_equal_the_whole"
    said = run_contract(tmp_path, f"wrong_running_mean and {test}")
    assert "1 failed" in said, said


def test_the_mixer_of_the_contributing_guide_passes(tmp_path):
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?class MeanMixer.*?)```", guide, re.DOTALL)[1]
    code = textwrap.dedent("   " + code.lstrip())
    code += "\nfrom hyperconformer import register_mixer\n"
    code += 'register_mixer("mean_of_the_guide")(MeanMixer)\n'
    options = "-m", "not slow"
    said = run_contract(tmp_path, "mean_of_the_guide", *options, plugin=code)
    assert " failed" not in said and " error" not in said, said
    assert int(said.split(" passed")[0].split()[-1]) >= 20, said
