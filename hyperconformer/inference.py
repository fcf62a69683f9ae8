"""Recognising speech with a trained model.

>>> from hyperconformer.inference import ASR               # doctest: +SKIP
>>> asr = ASR.from_hparams(source="results/spoken/model")  # doctest: +SKIP
>>> asr.transcribe_file("speech.wav")                      # doctest: +SKIP
'TURN ON THE LIGHT'
"""

import torch
from speechbrain.decoders.ctc import ctc_greedy_decode
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.audio import prepare_samples, read_audio
from hyperconformer.model_folder import load_model

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
        ValueError
            If it holds another kind of model.
        """
        config, tokenizer = load_model(source, ("extractor", "recognizer"), device)
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
