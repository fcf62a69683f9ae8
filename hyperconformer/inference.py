"""Recognising speech with a trained model.

>>> from hyperconformer.inference import ASR               # doctest: +SKIP
>>> asr = ASR.from_hparams(source="results/spoken/model")  # doctest: +SKIP
>>> asr.transcribe_file("speech.wav")                      # doctest: +SKIP
'TURN ON THE LIGHT'
"""

import pathlib

import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from speechbrain.decoders.ctc import ctc_greedy_decode
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.audio import prepare_samples, read_audio
from hyperconformer.export import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
)

MIN_DURATION_S = 0.1


class ASR:
    """A speech recogniser: samples in, text out.

    Arguments
    ---------
    extractor : hyperconformer.integration.frontend.FeatureExtractor
        Samples to features.
    recognizer : hyperconformer.integration.recognizer.Recognizer
        Features to token probabilities.
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    sample_rate_hz : int
        Rate of the samples that the extractor takes.
    """

    def __init__(self, extractor, recognizer, tokenizer, sample_rate_hz):
        self.extractor = extractor.eval()
        self.recognizer = recognizer.eval()
        self.tokenizer = tokenizer
        self.sample_rate_hz = sample_rate_hz

    @classmethod
    def from_hparams(cls, source, device="cpu"):
        """Load a model folder.

        Arguments
        ---------
        source : str or pathlib.Path
            The folder, or the output folder of a training run that holds it.
        device : str or torch.device
            Where to compute.

        Returns
        -------
        ASR

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        """
        folder = find_model(source)
        with open(folder / CONFIG_FILE, encoding="utf-8") as file:
            config = load_hyperpyyaml(file)
        weights = load_file(folder / WEIGHTS_FILE, device=str(device))
        for name in ("extractor", "recognizer"):
            own = {
                key[len(name) + 1 :]: value
                for key, value in weights.items()
                if key.startswith(name + ".")
            }
            config[name].to(device).load_state_dict(own, strict=True)
        tokenizer = SentencePieceProcessor(model_file=str(folder / TOKENIZER_FILE))
        return cls(
            config["extractor"],
            config["recognizer"],
            tokenizer,
            config["sample_rate"],
        )

    def transcribe_file(self, path):
        """Text of an audio file.

        Arguments
        ---------
        path : str or pathlib.Path
            Any container, rate and channel count that libsndfile reads.

        Returns
        -------
        str

        Raises
        ------
        hyperconformer.audio.AudioError
            If the file cannot be used; the message names it.
        ValueError
            If it is too short.
        """
        samples = read_audio(path, self.sample_rate_hz)
        self._check_duration(samples, path)
        return self._recognize([samples])[0]

    def transcribe(self, samples, sample_rate_hz):
        """Text of samples.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (N,) or (channels, N), full scale = 1 if floating.
        sample_rate_hz : int
            Their rate.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If there are too few, or one is not finite.
        """
        samples = prepare_samples(samples, sample_rate_hz, self.sample_rate_hz)
        self._check_duration(samples, "the audio")
        return self._recognize([samples])[0]

    def transcribe_batch(self, wavs, wav_lens):
        """Texts of a padded batch, each as if alone.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples at the model's rate, zero past each end.
        wav_lens : torch.Tensor
            (B,) relative lengths in (0, 1].

        Returns
        -------
        list of str
        """
        counts = (wav_lens * wavs.shape[1]).round().long()
        return self._recognize([wav[:count] for wav, count in zip(wavs, counts)])

    def _check_duration(self, samples, what):
        seconds = len(samples) / self.sample_rate_hz
        if seconds < MIN_DURATION_S:
            raise ValueError(
                f"{what} lasts {seconds:.4f} s; at least {MIN_DURATION_S} s is needed"
            )

    @torch.no_grad()
    def _recognize(self, utterances):
        device = self.extractor.mean.device
        counts = torch.tensor([len(samples) for samples in utterances], device=device)
        wavs = pad_sequence(utterances, batch_first=True).to(device)
        features, lengths = self.extractor(wavs, counts / wavs.shape[1])
        output = self.recognizer(features, lengths)
        ids = ctc_greedy_decode(output.ctc, output.relative_lengths, blank_id=0)
        return [self.tokenizer.decode_ids(sequence) for sequence in ids]


def find_model(source):
    """The model folder behind a folder that a user names.

    Arguments
    ---------
    source : str or pathlib.Path
        A model folder, or the output folder of a training run.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    FileNotFoundError
        Naming what is missing.
    """
    source = pathlib.Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no such model folder: {source}")
    folder = source if (source / WEIGHTS_FILE).is_file() else source / "model"
    for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{source} is no model folder: it lacks {name}, also in its folder "
                "`model`, where a finished training run leaves it"
            )
    return folder
