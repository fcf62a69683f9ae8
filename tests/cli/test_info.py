"""``hyperconformer info``."""

from command_line import run

from hyperconformer.hub.folder import DEFAULT_MODEL


def test_info_says_what_can_be_used(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0
    names = (
        "hyperconformer",
        "torch",
        "speechbrain",
        "devices",
        "c++ kernels",
        "linear layers by onednn",
        "kenlm",
    )
    for name in names:
        assert f"\n{name}: " in f"\n{out}"
    assert "WAV" in out and "hypermixing" in out and DEFAULT_MODEL in out
