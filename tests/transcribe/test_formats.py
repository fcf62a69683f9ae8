"""What is written of a transcription."""

import json
import math

from hyperconformer.core.words import Hypothesis, Transcription
from hyperconformer.transcribe.formats import to_json


def test_a_score_that_is_not_finite_is_null():
    """Where no word of a lexicon fits; JSON has no infinite numbers."""
    nbest = (Hypothesis("GO", -1.23456, ()), Hypothesis("", -math.inf, ()))
    text = to_json("a.wav", Transcription("GO", (), nbest, 1.0))
    strict = json.loads(text, parse_constant=lambda name: 1 / 0)
    assert [each["score"] for each in strict["nbest"]] == [-1.2346, None]
