"""What a report shows."""

import pytest

from hyperconformer.ablation import report


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.017709643541, "0.01771"),
        (0.001, "0.001"),
        (8, "8"),
        (True, "True"),
        ("RoPEMHA", "RoPEMHA"),
    ],
)
def test_settings_are_shown_with_four_digits(value, shown):
    assert report._shown(value) == shown
