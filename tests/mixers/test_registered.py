"""A mixer from outside is held to the contract by being registered, and by no more."""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.integration

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The test that a wrong mixer fails.
CAUGHT = "(wrong_running_mean and test_streams_apart_equal_the_whole)"

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


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the contract's tests say of three mixers: {mixer: {test: outcome}}.

    One process tests all three: imports and collection take longer than the tests.
    """
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?class MeanMixer.*?)```", guide, re.DOTALL)[1]
    plugin = PLUGIN + textwrap.dedent("   " + code.lstrip())
    plugin += '\nregister_mixer("mean_of_the_guide")(MeanMixer)\n'
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "running_means.py").write_text(plugin)
    path = os.pathsep.join([str(folder), str(ROOT)])
    files = [f"tests/mixers/test_{kind}.py" for kind in ("contract", "streaming")]
    command = [sys.executable, "-m", "pytest", "-p", "running_means", *files]
    command += ["-k", f"right_running_mean or mean_of_the_guide or {CAUGHT}"]
    said = subprocess.run(
        [*command, "-q", "-rA", "-p", "no:cacheprovider", "-m", "not slow"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for outcome, test in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\S+)", said, re.M):
        found.setdefault(mixer_of(test), {})[test] = outcome
    # Those that were skipped are listed without their names.
    assert "SKIPPED" not in said, said
    return found


def mixer_of(test):
    names = ("right_running_mean", "wrong_running_mean", "mean_of_the_guide")
    return next((name for name in names if name in test), None)


def test_a_right_mixer_passes(outcomes):
    found = outcomes["right_running_mean"]
    assert set(found.values()) == {"PASSED"} and len(found) >= 25, found


def test_a_wrong_one_fails(outcomes):
    assert list(outcomes["wrong_running_mean"].values()) == ["FAILED"]


def test_the_mixer_of_the_contributing_guide_passes(outcomes):
    found = outcomes["mean_of_the_guide"]
    assert set(found.values()) == {"PASSED"} and len(found) >= 20, found
