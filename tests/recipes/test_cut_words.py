"""Short pieces are cut out of utterances where their words are."""

import pathlib
import random
import runpy
from types import SimpleNamespace

import pytest
import soundfile
import torch

from hyperconformer import ASR
from hyperconformer.core.words import Word
from hyperconformer.corpora.librispeech import list_utterances

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEV = ROOT / "tests/data/librispeech_dev19"
SPLITS = ("train-clean-5", "train-clean-100-part", "common-voice-train", "an4-train")
RATE_HZ = 16000


@pytest.fixture
def script():
    return runpy.run_path(str(ROOT / "recipes/LibriSpeech/cut_words.py"))


def spoken(words):
    """Each word a tone of 0.3 s, the pauses between them 0.2 s; and when they are."""
    pause, times, pieces = torch.zeros(RATE_HZ // 5), [], []
    for index, word in enumerate(words):
        hz = 300 + 100 * index
        tone = 0.3 * torch.sin(2 * torch.pi * hz * torch.arange(4800) / RATE_HZ)
        pieces += [pause, tone]
        start_s = 0.2 + 0.5 * index
        times.append(Word(word, start_s + 0.1, start_s + 0.28, 1.0))
    return torch.cat([*pieces, pause]), times


def test_a_piece_holds_its_words(script, tmp_path):
    samples, times = spoken("ONE TWO THREE FOUR FIVE".split())
    soundfile.write(tmp_path / "a.wav", samples.numpy(), RATE_HZ, subtype="FLOAT")
    utterance = SimpleNamespace(audio=str(tmp_path / "a.wav"), text="TEXT")
    asr = SimpleNamespace(align=lambda *_: times)
    tones = {word.text: 300 + 100 * index for index, word in enumerate(times)}
    pieces = list(script["cut"](utterance, asr, random.Random(3), 30))
    assert {len(text.split()) for _, text in pieces} == {1, 2, 3}
    for piece, text in pieces:
        spectrum = torch.fft.rfft(piece, n=4 * RATE_HZ).abs()  # 4 bins a Hz
        for word, hz in tones.items():
            heard = spectrum[4 * hz - 4 : 4 * hz + 5].max() > 500
            assert heard == (word in text.split()), (text, word)
        # cut close to the words; where that is speech, with the recogniser's silence
        words = len(text.split())
        assert 0.28 <= len(piece) / RATE_HZ - 0.5 * (words - 1) <= 0.52 + 2 * 0.24


def test_a_word_too_short_for_its_letters_is_left_out(script, tmp_path):
    samples, times = spoken(["SEVEN", "X" * 12])
    soundfile.write(tmp_path / "a.wav", samples.numpy(), RATE_HZ)
    utterance = SimpleNamespace(audio=str(tmp_path / "a.wav"), text="TEXT")
    asr = SimpleNamespace(align=lambda *_: times)
    texts = {text for _, text in script["cut"](utterance, asr, random.Random(0), 20)}
    assert texts == {"SEVEN", "SEVEN " + "X" * 12}


def test_what_cannot_be_cut_is_refused(script, tmp_path):
    samples, times = spoken("ONE TWO".split())
    soundfile.write(tmp_path / "a.wav", samples.numpy(), RATE_HZ)
    asr = SimpleNamespace(align=lambda *_: times)
    for audio, text in ((None, "ONE TWO"), (str(tmp_path / "a.wav"), None)):
        utterance = SimpleNamespace(id="7-1-0003", audio=audio, text=text)
        with pytest.raises(ValueError, match="7-1-0003: audio or transcript is miss"):
            list(script["cut"](utterance, asr, random.Random(0), 1))
    for length in (0, 100, 319, 640):  # a last word that begins in the last frame
        assert len(script["trim"](torch.zeros(length), 10)) == 0


@pytest.mark.integration
def test_the_pieces_of_the_bundled_utterances(script, tmp_path, capsys):
    for split in SPLITS[:3]:
        (tmp_path / split).symlink_to(DEV)
    options = SimpleNamespace(librispeech=str(tmp_path), model=None)
    with pytest.raises(FileNotFoundError, match="an4-train"):
        script["main"](options)
    (tmp_path / SPLITS[3]).symlink_to(DEV)
    script["main"](options)
    with pytest.raises(FileExistsError, match="words-train is there already"):
        script["main"](options)
    assert "could not be aligned" in capsys.readouterr().out
    utterances = list_utterances(tmp_path / "words-train")
    assert len(utterances) > 60 and all(one.audio and one.text for one in utterances)
    said = " ".join(one.text for one in list_utterances(DEV))
    assert all(one.text in said for one in utterances)
    # A model that did not choose the cuts finds most of the words in them.
    asr = ASR.from_hparams("hyperconformer-librispeech-streaming")
    asr.use_search(None)
    right = sum(
        one.text[0] in asr.transcribe_file(one.audio).text for one in utterances
    )
    assert right > len(utterances) / 2
