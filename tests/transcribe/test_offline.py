"""The recogniser: words, batches, long audio, formats."""

import itertools
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
import torch

from hyperconformer.audio import AudioError
from hyperconformer.cli.main import main
from hyperconformer.core.words import Hypothesis, Transcription, Word
from hyperconformer.lm.ngram import train_arpa
from hyperconformer.model.recognizer import Recognition
from hyperconformer.search.ctc_beam import CTCSearcher
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.transcribe import edges
from hyperconformer.transcribe.formats import FORMATS, cues
from hyperconformer.transcribe.offline import ASR

RATE = 16000
DATA = pathlib.Path(__file__).resolve().parents[1] / "data"


@pytest.fixture(scope="module")
def asr(tiny_model):
    return ASR.from_hparams(tiny_model)


def noise(seconds, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator)


def test_words_spell_the_text_and_follow_each_other(asr):
    result = asr.transcribe(noise(3), RATE)
    assert result.duration_s == 3 and str(result) == result.text
    assert " ".join(word.text for word in result.words) == result.text != ""
    for word in result.words:
        assert 0 <= word.start_s < word.end_s <= 3.04
        assert 0 < word.confidence <= 1
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(result.words))
    assert result.nbest[0].text == result.text


def test_batch_order_and_company_change_nothing(asr):
    utterances = [noise(seconds, seed) for seed, seconds in enumerate((1.2, 0.7, 2))]
    wavs = torch.nn.utils.rnn.pad_sequence(utterances, True, float("nan"))
    lengths = torch.tensor([len(wav) for wav in utterances]) / wavs.shape[1]
    alone = [asr.transcribe(wav, RATE) for wav in utterances]
    together = asr.transcribe_batch(wavs, lengths)
    backwards = asr.transcribe_batch(wavs.flip(0), lengths.flip(0))[::-1]
    for one, other, another in zip(alone, together, backwards):
        assert one.text == other.text == another.text
        times = [[(w.start_s, w.end_s) for w in r.words] for r in (one, other, another)]
        assert times[0] == times[1] == times[2]


@pytest.mark.parametrize(
    "name", ["1993/147149/1993-147149-0008", "2277/149874/2277-149874-0004"]
)
def test_speech_a_little_longer_than_a_chunk_is_recognised_alone(name):
    """Not with the silence that its chunks hold."""
    asr = ASR.from_hparams("hyperconformer-librispeech", search=GreedySearcher())
    speech, _ = soundfile.read(DATA / f"librispeech_dev19/{name}.flac", dtype="float32")
    samples = np.pad(speech, 3 * RATE)
    expected = asr.transcribe(samples, RATE).text
    asr.chunk_s = 2.5
    assert 3 < len(speech) / RATE < 2.5 + 2 * 2.5 / 4
    assert asr.transcribe(samples, RATE).text == expected


def test_a_known_text_is_aligned(asr):
    samples = noise(3)
    result = asr.transcribe(samples, RATE)
    # Of all texts the recognised one is the surest; another one is aligned as well.
    assert [word.text for word in asr.align(samples, RATE, result.text)] == [
        word.text for word in result.words
    ]
    words = asr.align(samples, RATE, "CAB DAD")
    assert [word.text for word in words] == ["CAB", "DAD"]
    assert 0 <= words[0].start_s < words[0].end_s <= words[1].start_s < 3
    assert asr.align(samples, RATE, "cab dad") == words
    with pytest.raises(ValueError, match="cannot write X Y, which the text 'XY CAB Y'"):
        asr.align(samples, RATE, "XY CAB Y")
    with pytest.raises(ValueError, match="too few"):
        asr.align(samples[:2000], RATE, 5 * "CAB DAD ")
    with pytest.raises(ValueError, match="longer than chunk_s"):
        asr.align(noise(21), RATE, "CAB")


def test_a_word_that_is_cut_close_is_aligned_with_silence_around_it(asr, monkeypatch):
    """As it is transcribed; the times are those of the recording."""
    monkeypatch.setattr(asr, "silence_s", edges.SILENCE_S)
    speech = noise(1)
    padded = torch.nn.functional.pad(speech, (round(0.24 * RATE),) * 2)
    cut = asr.align(speech, RATE, "CAB")
    whole = asr.align(padded, RATE, "CAB")
    assert [word.confidence for word in cut] == [word.confidence for word in whole]
    assert [word.moved(-0.24, 1.0) for word in whole] == list(cut)


def test_features_that_depend_on_silence_get_none(asr):
    """A model recognises what its evaluation in training did."""
    speech = noise(1)
    with torch.no_grad():
        found = asr.recognizer(*asr.extractor(speech[None], torch.ones(1)))
    (expected,) = GreedySearcher().texts(found, asr.tokenizer)
    (batch,) = asr.transcribe_batch(speech[None], torch.ones(1))
    assert asr.extractor.normalization not in ("level", "running_level")
    assert asr.transcribe(speech, RATE).text == batch.text == expected != ""


def test_batches_that_are_none_are_refused(asr):
    wavs, lengths = torch.zeros(2, RATE), torch.ones(2)
    with pytest.raises(ValueError, match="wavs must be a tensor, got list"):
        asr.transcribe_batch([*wavs], lengths)
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        asr.transcribe_batch(wavs[0], lengths)
    with pytest.raises(ValueError, match=r"\(B,\)"):
        asr.transcribe_batch(wavs, lengths[:1])
    with pytest.raises(ValueError, match="relative lengths"):
        asr.transcribe_batch(wavs, 2 * lengths)
    with pytest.raises(ValueError, match="at least 0.1 s"):
        asr.transcribe_batch(wavs[:, :100], lengths)
    with pytest.raises(ValueError, match="NaN"):
        asr.transcribe_batch(wavs / 0, lengths)
    with pytest.raises(ValueError, match="longer than chunk_s"):
        asr.transcribe_batch(torch.zeros(1, 21 * RATE), lengths[:1])


def test_silence_is_not_made_into_words(asr):
    result = asr.transcribe(torch.zeros(30 * RATE), RATE)
    assert result.text == "" and result.words == () and result.duration_s == 30
    assert asr.transcribe_batch(torch.zeros(1, RATE), torch.ones(1))[0].text == ""


def test_any_rate_and_channel_count(asr, tmp_path):
    samples = noise(2).numpy()
    expected = asr.transcribe(samples, RATE).text
    for extension, subtype in (("wav", "PCM_24"), ("flac", "PCM_24"), ("au", "FLOAT")):
        path = tmp_path / f"a.{extension}"
        soundfile.write(path, np.stack([samples] * 2, 1), RATE, subtype)
        assert asr.transcribe_file(path).text == expected
    soundfile.write(tmp_path / "a.ogg", samples, 48000)
    assert asr.transcribe_file(tmp_path / "a.ogg").duration_s == pytest.approx(
        2 / 3, 0.01
    )


def test_bad_files_are_named(asr, tmp_path):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(100), RATE)
    with pytest.raises(AudioError, match="short.wav: the audio lasts 0.0063 s"):
        asr.transcribe_file(path)


def test_long_audio_is_what_its_overlapping_chunks_say(tiny_model, tmp_path):
    """Its words spell its text in order of time, and a file is what its samples are."""
    asr = ASR.from_hparams(tiny_model, chunk_s=4.0)
    bursts = [noise(0.6, seed) for seed in range(20)]
    quiet = torch.zeros(int(0.6 * RATE))
    samples = torch.cat([part for burst in bursts for part in (quiet, burst)])
    path = tmp_path / "long.wav"
    soundfile.write(path, samples.numpy(), RATE, "FLOAT")
    result = asr.transcribe_file(path)
    assert result.duration_s == 24
    assert " ".join(word.text for word in result.words) == result.text
    starts = [word.start_s for word in result.words]
    assert starts == sorted(starts) and result.words[-1].end_s <= 24.04
    assert result == asr.transcribe(samples, RATE)


def test_the_chunks_of_a_long_recording_agree_with_the_whole(tiny_model):
    """A model that hears each frame by itself must not notice the chunks at all."""
    asr = ASR.from_hparams(tiny_model)
    deaf = asr.recognizer.transformer.encoder
    # Without the encoder's layers only the front end looks around, some frames far.
    deaf.forward = lambda src, *_: (src, [])
    asr.extractor.normalization = "global"
    asr.extractor.features.compute_fbanks.top_db = float("inf")
    samples = noise(30)
    asr.chunk_s = 60.0
    whole = asr.transcribe(samples, RATE)
    asr.chunk_s = 8.0
    parts = asr.transcribe(samples, RATE)
    assert len(whole.text) > 100 and parts.text == whole.text
    assert [(w.start_s, w.end_s) for w in parts.words] == [
        (w.start_s, w.end_s) for w in whole.words
    ]


@pytest.mark.parametrize(
    "search", [GreedySearcher(), CTCSearcher(beam_size=4, nbest=2)]
)
def test_a_pause_ends_a_word(tiny_model, search, monkeypatch):
    """Whatever the model says of the word boundary: nothing, or too much of it."""
    # These samples are no sound: none of them is an edge of speech.
    monkeypatch.setattr(edges, "BELOW_DB", -math.inf)
    asr = ASR.from_hparams(tiny_model, search=search)
    mark, a, b = (asr.tokenizer.piece_to_id(piece) for piece in "\u2581AB")
    frame_s = asr.frame_samples / RATE
    pause = [0] * (int(1 / frame_s) + 1)
    tokens = asr.tokenizer.vocab_size()

    def hears(*path):
        # Samples that tell to which frame they belong.
        samples = torch.arange(len(path)).repeat_interleave(asr.frame_samples) / 1000

        def recognize(utterances):
            torch.manual_seed(0)
            first = round(1000 * utterances[0][0].item())
            part = path[first : first + len(utterances[0]) // asr.frame_samples]
            ctc = torch.full((len(utterances), len(part), tokens), -20.0)
            ctc[:, torch.arange(len(part)), list(part)] = 0.0
            # torchaudio's alignment is not the best one where scores are equal.
            ctc += 1e-3 * torch.rand(ctc.shape[1:])
            lengths = torch.full((len(utterances),), len(part))
            encoded = torch.zeros(
                len(utterances), len(part), asr.recognizer.ctc_head.in_features
            )
            return Recognition(ctc.log_softmax(-1), lengths, encoded, None)

        asr._recognize = recognize
        alone = asr.transcribe(samples, RATE)
        assert asr.transcribe_batch(samples.expand(2, -1), torch.ones(2)) == [alone] * 2
        return alone

    for path in (
        [mark, a, *pause, b],
        [mark, a, *pause, mark, b],
        [mark, a, 0, mark, *pause, b],
        [mark, a, *pause, mark, *pause, b],
    ):
        result = hears(*path)
        assert result.text == "A B" and result.duration_s == len(path) * frame_s
        assert [word.text for word in result.words] == ["A", "B"]
        begin_s = (len(path) - 1) * frame_s
        assert result.words[1].end_s == pytest.approx(begin_s + frame_s)
        assert result.words[1].start_s >= 1.0
    assert hears(mark, a, *pause[:2], b).text == "AB"


def test_speech_between_pauses_is_recognised_by_itself(tiny_model):
    """Long or short: silence and other speech beside an utterance change nothing."""
    asr = ASR.from_hparams(tiny_model)
    letter = asr.tokenizer.piece_to_id("A")
    tokens, hop = asr.tokenizer.vocab_size(), asr.frame_samples
    heard = []

    def recognize(utterances):
        # A letter where it is loud.
        (samples,) = utterances
        heard.append(samples)
        frames = len(samples) // hop + 1
        loud = [samples[i * hop :][:hop].abs().sum() > 0 for i in range(frames)]
        ctc = torch.full((1, frames, tokens), -20.0)
        ctc[0, range(frames), [letter if yes else 0 for yes in loud]] = 0.0
        encoded = torch.zeros(1, frames, asr.recognizer.ctc_head.in_features)
        lengths = torch.tensor([frames])
        return Recognition(ctc.log_softmax(-1), lengths, encoded, None)

    asr._recognize = recognize
    bursts = [noise(20 * hop / RATE, seed) for seed in range(9)]
    whole = torch.cat(
        [x for i, b in enumerate(bursts) for x in (b, torch.zeros((30 + i) * hop))]
    )
    for chunk_s in (5, 8, 40):
        heard.clear()
        asr.chunk_s = chunk_s
        result = asr.transcribe(whole, RATE)
        assert result.text == " ".join("A" * 9)
        for burst in bursts:
            # Once each is heard with nothing but silence.
            alone = [s for s in heard if len(s) <= len(burst) + 14 * hop]
            assert any(
                torch.equal(burst, s[k : k + len(burst)])
                for s in alone
                for k in range(0, 8 * hop, hop)
                if len(s) >= k + len(burst)
            )
        assert [w.start_s for w in result.words] == pytest.approx(
            [
                (sum(20 + 30 + j for j in range(i)) * hop) / RATE
                for i in range(len(bursts))
            ],
            abs=2 * hop / RATE,
        )
    heard.clear()
    asr.chunk_s = 20.0
    asr.transcribe(bursts[0], RATE)
    assert len(heard) == 1


def test_as_many_readings_of_long_audio_as_of_short(tiny_model):
    search = CTCSearcher(beam_size=8, nbest=5)
    asr = ASR.from_hparams(tiny_model, search=search, chunk_s=2.0)
    for seconds in (1, 7):
        nbest = asr.transcribe(noise(seconds), RATE).nbest
        assert len({reading.text for reading in nbest}) == len(nbest) == 5
        assert [r.score for r in nbest] == sorted(r.score for r in nbest)[::-1]


def test_nbest_are_different_and_sorted(tiny_model):
    asr = ASR.from_hparams(tiny_model, search=CTCSearcher(beam_size=8, nbest=4))
    result = asr.transcribe(noise(1), RATE)
    scores = [hypothesis.score for hypothesis in result.nbest]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert len({hypothesis.text for hypothesis in result.nbest}) == 4
    assert result.text == result.nbest[0].text


@pytest.mark.parametrize("search", ["greedy", "beam", "n-grams"])
def test_half_precision_is_searched(tiny_model, tmp_path, search):
    arpa = train_arpa(["CAB DAD"], tmp_path / "lm.arpa", 1)
    search = {
        "greedy": GreedySearcher(),
        "beam": CTCSearcher(),
        "n-grams": CTCSearcher(arpa=arpa),
    }[search]
    asr = ASR.from_hparams(tiny_model, search=search)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = asr.transcribe(noise(1), RATE)
        features, lengths = asr.extractor(noise(1)[None], torch.ones(1))
        recognition = asr.recognizer(features, lengths)
    assert result.text and torch.isfinite(torch.tensor(result.nbest[0].score))
    assert recognition.encoded.dtype == torch.bfloat16
    assert recognition.ctc.dtype == torch.float32


def test_the_precision_of_log_probabilities_is_that_of_wider_weights(tiny_model):
    asr = ASR.from_hparams(tiny_model)
    features, lengths = asr.extractor(noise(1)[None], torch.ones(1))
    with torch.no_grad():
        recognition = asr.recognizer.double()(features.double(), lengths)
    assert recognition.ctc.dtype == torch.float64


RESULT = Transcription(
    "GO ON",
    (Word("GO", 0.4, 0.8, 0.98765), Word("ON", 3661.5, 3662.0, 0.5)),
    (Hypothesis("GO ON", -1.23456, (3, 4)), Hypothesis("GO", -2.0)),
    3662.5,
)


def test_a_folder_with_word_ngrams_is_decoded_with_them(
    tiny_model, change_settings, tmp_path, capsys
):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    samples = noise(3)
    greedy = ASR.from_hparams(folder)
    spelled = greedy.transcribe(samples, RATE).text
    arpa = train_arpa(["AB BA"], folder / "lm.arpa")
    change_settings(folder, ngram={"lm_weight": 2.0, "word_bonus": 3.0})
    search = CTCSearcher(arpa=arpa, lm_weight=2.0, word_bonus=3.0)
    expected = ASR.from_hparams(tiny_model, search=search).transcribe(samples, RATE)
    asr = ASR.from_hparams(folder)
    result = asr.transcribe(samples, RATE)
    assert result == expected and result.text != spelled
    # The same search with an option of its own, and none at all.
    asr.use_search(CTCSearcher(nbest=2, **asr.ngram))
    assert asr.transcribe(samples, RATE).text == result.text
    soundfile.write(tmp_path / "a.wav", samples.numpy(), RATE, subtype="FLOAT")
    for options, expected in (
        ([], result.text),
        (["--nbest", "2"], result.text),
        (["--lm", "none"], spelled),
    ):
        command = ["transcribe", str(tmp_path / "a.wav"), "--model", str(folder)]
        assert main([*command, *options]) == 0
        assert expected in capsys.readouterr().out


def test_a_weight_without_a_model_is_refused(tiny_model, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(1).numpy(), RATE)
    command = ["transcribe", str(tmp_path / "a.wav"), "--model", str(tiny_model)]
    assert main([*command, "--lm-weight", "1"]) != 0
    assert "--lm" in capsys.readouterr().err


def test_formats():
    assert FORMATS["txt"]("a/b c.wav", RESULT) == "GO ON\n"
    assert json.loads(FORMATS["json"]("a/b c.wav", RESULT)) == {
        "file": "a/b c.wav",
        "duration_s": 3662.5,
        "text": "GO ON",
        "words": [
            {"text": "GO", "start_s": 0.4, "end_s": 0.8, "confidence": 0.9877},
            {"text": "ON", "start_s": 3661.5, "end_s": 3662.0, "confidence": 0.5},
        ],
        "nbest": [
            {"text": "GO ON", "score": -1.2346},
            {"text": "GO", "score": -2.0},
        ],
    }
    assert FORMATS["srt"]("a/b c.wav", RESULT) == (
        "1\n00:00:00,400 --> 00:00:00,800\nGO\n\n"
        "2\n01:01:01,500 --> 01:01:02,000\nON\n\n"
    )
    assert FORMATS["vtt"]("a/b c.wav", RESULT) == (
        "WEBVTT\n\n00:00:00.400 --> 00:00:00.800\nGO\n\n"
        "01:01:01.500 --> 01:01:02.000\nON\n\n"
    )
    assert FORMATS["ctm"]("a/b c.wav", RESULT) == (
        "b_c 1 0.400 0.400 GO 0.9877\nb_c 1 3661.500 0.500 ON 0.5000\n"
    )


def test_subtitles_stay_readable():
    words = [Word("WORD", 0.5 * i, 0.5 * i + 0.4, 1.0) for i in range(40)]
    groups = cues(words)
    assert [word for group in groups for word in group] == words
    for group in groups:
        assert len(" ".join(word.text for word in group)) <= 42
        assert group[-1].end_s - group[0].start_s <= 6


@pytest.mark.slow
def test_an_hour_in_the_memory_of_a_minute(tiny_model, tmp_path):
    """Resident memory does not grow with the length, and the end is still heard."""
    resource = pytest.importorskip("resource")
    asr = ASR.from_hparams(tiny_model)
    path = tmp_path / "hour.wav"
    minute = noise(60).numpy()
    peaks = []
    for minutes in (2, 60):
        with soundfile.SoundFile(path, "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        result = asr.transcribe_file(path)
        assert result.duration_s == 60 * minutes
        assert result.words[-1].end_s > 60 * minutes - 5
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"peak resident memory: {peaks[0]:.0f} MB, then {peaks[1]:.0f} MB")
    # The words themselves may take a little; an hour of samples alone is 230 MB.
    assert peaks[1] - peaks[0] < 100
