"""Speech that touches the edge of a recording."""

import pytest
import torch
from speechbrain.lobes.features import Fbank

from hyperconformer.model.features import FeatureExtractor
from hyperconformer.transcribe import edges
from hyperconformer.transcribe.edges import Edges, silence_for, with_silence
from hyperconformer.transcribe.offline import ASR

RATE = 16000
PAUSE = int(0.2 * RATE)
SILENCE = int(0.24 * RATE)


def speech(seconds=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator)


def room(samples, db=-40):
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(samples, generator=generator)
    return 0.1 * 10 ** (db / 20) * noise


@pytest.mark.parametrize("offset", [0.0, 0.3])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_silence_is_put_where_speech_begins_or_ends_at_once(before, after, offset):
    pause = room(PAUSE)
    parts = [] if before else [pause]
    samples = torch.cat([*parts, speech(), *([] if after else [pause])]) + offset
    got, *found = with_silence(samples, RATE)
    assert found == [SILENCE * before, SILENCE * after]
    begin = found[0]
    assert torch.equal(got[begin : begin + len(samples)], samples)
    assert not got[:begin].any() and not got[begin + len(samples) :].any()


@pytest.mark.parametrize("samples", [torch.zeros(8000), torch.full((8000,), 0.2)])
def test_what_is_no_sound_has_no_edges(samples):
    assert with_silence(samples, RATE)[1:] == (0, 0)


def test_a_faint_hum_is_no_speech():
    loud = torch.cat([room(PAUSE, -25), speech(), room(PAUSE, -25)])
    assert with_silence(loud, RATE)[1:] == (0, 0)
    # It is all that there is.
    assert with_silence(room(8000, -25), RATE)[1:] == (SILENCE, SILENCE)


@pytest.mark.parametrize("sizes", [[3000, 5000], [8000], [0, 1, 1699, 0, 6299, 1]])
def test_blocks_are_as_the_whole(sizes):
    samples = speech()
    whole, before, after = with_silence(samples, RATE)
    split = Edges(samples.split(sizes), RATE)
    assert torch.equal(torch.cat(list(split)), whole)
    assert (split.before, split.after) == (before, after) == (SILENCE, SILENCE)


def test_a_quiet_last_block_is_compared_with_the_loudest():
    split = Edges([torch.cat([room(PAUSE), speech()]), room(4000)], RATE)
    list(split)
    assert (split.before, split.after) == (0, 0)


def test_text_is_that_of_the_silence_and_times_are_the_recordings(
    tiny_model, monkeypatch
):
    asr, samples = ASR.from_hparams(tiny_model), speech(3)
    monkeypatch.setattr(asr, "silence_s", edges.SILENCE_S)
    found = asr.transcribe(samples, RATE)
    monkeypatch.setattr(asr, "silence_s", 0.0)
    plain = asr.transcribe(samples, RATE)
    padded = asr.transcribe(torch.nn.functional.pad(samples, [SILENCE] * 2), RATE)
    assert found.text == padded.text != plain.text
    assert found.duration_s == plain.duration_s == 3
    for word, reference in zip(found.words, padded.words, strict=True):
        assert 0 <= word.start_s < word.end_s <= 3
        assert word.text == reference.text
        if 0.24 <= reference.start_s and reference.end_s <= 3.24:
            assert word.start_s == pytest.approx(reference.start_s - 0.24)
            assert word.end_s == pytest.approx(reference.end_s - 0.24)


def test_silence_makes_no_recording_long_enough(tiny_model):
    asr = ASR.from_hparams(tiny_model)
    with pytest.raises(ValueError, match="lasts 0.0500 s; at least 0.1 s"):
        asr.transcribe(speech(0.05), RATE)


@pytest.mark.parametrize(
    "normalization, silence_s",
    [("utterance", 0), ("global", 0), ("level", 0.24), ("running_level", 0.24)],
)
def test_silence_is_for_features_that_do_not_depend_on_it(normalization, silence_s):
    features = Fbank(sample_rate=RATE, n_mels=8)
    extractor = FeatureExtractor(
        features, num_features=8, normalization=normalization, top_db=None
    )
    assert silence_for(extractor) == silence_s
    tight = speech()
    assert with_silence(tight, RATE, 0.0)[1:] == (0, 0)
    assert list(Edges([tight], RATE, 0.0))[0].equal(tight)
