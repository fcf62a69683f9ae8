"""SpeechBrain's own interfaces load our model folders as they are."""

import shutil

import pytest
import soundfile
import torch
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR

from hyperconformer.transcribe.offline import ASR


@pytest.fixture
def audio(tmp_path):
    """A file of noise between pauses, and its samples as they are read back.

    SpeechBrain puts no silence before and after speech that touches an edge.
    """
    path, noise = tmp_path / "noise.wav", 0.1 * torch.randn(24000)
    noise[:2000] *= 0.01
    noise[-2000:] *= 0.01
    soundfile.write(path, noise.numpy(), 16000)
    return str(path), torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def test_encoder_asr_gives_what_ours_gives(tiny_model, audio, tmp_path):
    path, samples = audio
    theirs = EncoderASR.from_hparams(
        source=str(tiny_model), savedir=tmp_path / "saved", run_opts={"device": "cpu"}
    )
    ours = ASR.from_hparams(tiny_model)
    text = str(ours.transcribe_file(path))
    assert len(text) > 5
    wavs = torch.stack([samples, samples.flip(0)])
    batch, _ = theirs.transcribe_batch(wavs, torch.ones(2))
    assert batch == [str(ours.transcribe(wav, 16000)) for wav in wavs]
    assert batch[0] == text
    for key, value in ours.recognizer.state_dict().items():
        assert torch.equal(value, theirs.mods.encoder.recognizer.state_dict()[key])


@pytest.mark.parametrize("filling", [0.5, float("nan")])
def test_encoder_asr_takes_padding_that_is_not_zero(
    tiny_model, audio, tmp_path, filling
):
    theirs = EncoderASR.from_hparams(
        source=str(tiny_model), savedir=tmp_path / "saved", run_opts={"device": "cpu"}
    )
    wavs = torch.stack([audio[1], audio[1].flip(0)])
    wavs[1, 12000:] = filling
    encoded = theirs.encode_batch(wavs, torch.tensor([1.0, 0.5]))
    alone = theirs.encode_batch(wavs[1:, :12000], torch.ones(1))
    assert torch.allclose(encoded[1, : alone.shape[1]], alone[0], atol=1e-4)


def test_transcribe_file_of_speechbrain(tiny_model, audio, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its fetch leaves links in the working folder
    theirs = EncoderASR.from_hparams(source=str(tiny_model), run_opts={"device": "cpu"})
    ours = ASR.from_hparams(tiny_model)
    assert theirs.transcribe_file(audio[0]) == str(ours.transcribe_file(audio[0]))


def test_encoder_decoder_asr_loads_a_model_with_a_decoder(
    build_model_folder, audio, tmp_path
):
    folder = build_model_folder(decoder_layers=1)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    theirs = EncoderDecoderASR.from_hparams(
        source=str(copy), savedir=tmp_path / "saved", run_opts={"device": "cpu"}
    )
    texts, tokens = theirs.transcribe_batch(audio[1][None], torch.ones(1))
    recognizer = ASR.from_hparams(copy).recognizer
    search = theirs.mods.decoder
    assert search.beam_size == 10 and len(texts) == 1 and len(tokens) == 1
    assert texts == [theirs.tokenizer.decode_ids(tokens[0])]
    for key, value in recognizer.state_dict().items():
        assert torch.equal(value, theirs.mods.encoder.recognizer.state_dict()[key])
