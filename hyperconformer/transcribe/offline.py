"""Recognising speech with a trained model.

>>> from hyperconformer.transcribe.offline import ASR               # doctest: +SKIP
>>> asr = ASR.from_hparams(source="results/spoken/model")  # doctest: +SKIP
>>> result = asr.transcribe_file("speech.wav")             # doctest: +SKIP
>>> print(result)                                          # doctest: +SKIP
TURN ON THE LIGHT
>>> result.words[0]                                        # doctest: +SKIP
Word(text='TURN', start_s=0.24, end_s=0.44, confidence=0.98)
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from torch.nn.utils.rnn import pad_sequence

from hyperconformer.audio import MAX_RATE_HZ, AudioError, prepare_samples, read_blocks
from hyperconformer.core.masks import relative_to_frames
from hyperconformer.core.text import as_written, unwritable
from hyperconformer.core.tokens import BLANK_INDEX, NO_TEXT, list_pieces
from hyperconformer.core.words import Hypothesis, Transcription, Word
from hyperconformer.hub.folder import DEFAULT_MODEL, load_model
from hyperconformer.model.features import FeatureExtractor
from hyperconformer.model.recognizer import Recognizer
from hyperconformer.search.alignment import WORD_START, align_words
from hyperconformer.search.base import Searcher
from hyperconformer.search.greedy import GreedySearcher
from hyperconformer.search.ngram import ngram_search
from hyperconformer.search.transducer import TransducerSearcher
from hyperconformer.transcribe.edges import Edges, silence_for, with_silence
from hyperconformer.transcribe.longform import (
    QUIET_S,
    Pauses,
    Tape,
    cut_at_pauses,
    merge_frame,
    merge_nbest,
    speech_stretches,
    split_audio,
)

MIN_DURATION_S = 0.1
# What is recognised at once, and how far it reaches into its neighbours.
CHUNK_S, OVERLAP_S = 20.0, 2.0
# What is read at once, at most.
BLOCK_S = 10.0
# A longer pause between two letters ends a word and a stretch of speech, which is then
# recognised by itself, with so much of the pauses around it. Long silences and other
# utterances beside one cost accuracy, as models are trained on single utterances: a
# stretch that becomes longer than usual utterances ends at its longest pause, if that
# is longer than those between words.
PAUSE_S, MARGIN_S = 0.8, 0.25
USUAL_S, SHORT_PAUSE_S = 8.0, 0.4
# Below one step of 16-bit audio there is nothing to recognise.
SILENCE = 2**-15
# The log-probability of all but the blank in such silence.
IMPOSSIBLE = -1e4

AnyASR = TypeVar("AnyASR", bound="ASR")


class ASR:
    """A speech recogniser: samples in, text, times and confidences out.

    Long audio is recognised in chunks that are cut where it is quiet
    (:mod:`hyperconformer.transcribe.longform`), in bounded memory.

    Arguments
    ---------
    extractor : hyperconformer.model.features.FeatureExtractor
        Samples to features.
    recognizer : hyperconformer.model.recognizer.Recognizer
        Features to token probabilities.
    tokenizer : sentencepiece.SentencePieceProcessor
        Tokens to text.
    sample_rate_hz : int
        Rate of the samples that the extractor takes.
    search : object, optional
        As for :meth:`use_search`.
    chunk_s : float
        Longest stretch that is recognised at once, without its context.

    Attributes
    ----------
    ngram : dict
        Options that bring the word n-grams of the model folder, for
        :func:`hyperconformer.search.ngram.ngram_search`; empty where it has none.

    Raises
    ------
    ValueError
        If the parts do not fit each other, or ``chunk_s`` is below 1.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        recognizer: Recognizer,
        tokenizer: SentencePieceProcessor,
        sample_rate_hz: int,
        search: Searcher | None = None,
        chunk_s: float = CHUNK_S,
    ):
        if not chunk_s >= 1:
            raise ValueError(f"chunk_s must be >= 1, got {chunk_s}")
        self.extractor = extractor.eval()
        self.silence_s = silence_for(extractor)
        self.recognizer = recognizer.eval()
        self.tokenizer = tokenizer
        self.sample_rate_hz = sample_rate_hz
        self.chunk_s = chunk_s
        self.ngram: dict[str, Any] = {}
        self._check_parts()
        self.use_search(search)
        self.frame_samples = (
            extractor.features.compute_STFT.hop_length * recognizer.frontend.stride
        )
        pieces = list_pieces(tokenizer)
        self.starts_word = torch.tensor(
            [piece.startswith(WORD_START) for piece in pieces]
        )
        self.audible = torch.tensor([piece.strip(WORD_START) != "" for piece in pieces])
        self.audible[[BLANK_INDEX, *NO_TEXT]] = False

    def use_search(self, search: Searcher | None = None) -> None:
        """Decode with another search from now on.

        Arguments
        ---------
        search : object, optional
            A search of :mod:`hyperconformer.search`; None = greedy, by the transducer
            where there is one.

        Raises
        ------
        ValueError
            If it does not fit the recogniser.
        """
        if search is None and self.recognizer.transducer is not None:
            search = TransducerSearcher(self.recognizer)
        search = search or GreedySearcher()
        search.prepare(self.tokenizer)
        self.search = search

    @classmethod
    def from_hparams(
        cls: type[AnyASR],
        source: str | pathlib.Path | None = None,
        device: str | torch.device = "cpu",
        trusted: bool = False,
        search: Searcher | None = None,
        chunk_s: float = CHUNK_S,
    ) -> AnyASR:
        """Load a model folder.

        Nothing in the folder is run, see :mod:`hyperconformer.hub.folder`.

        Arguments
        ---------
        source : str or pathlib.Path, optional
            The folder, the output folder of a training run that holds it, the name
            of a shipped model, or ``owner/name`` on the Hugging Face hub. None = the
            shipped default model.
        device : str or torch.device
            Where to compute.
        trusted : bool
            True lets the folder's settings run any code, as SpeechBrain does: only
            for folders of your own that name classes of your own.
        search : object, optional
            A search of :mod:`hyperconformer.search`; None = a beam search with the
            folder's word n-grams or, where it has none, greedy.
        chunk_s : float
            Longest stretch that is recognised at once.

        Returns
        -------
        ASR

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If it holds another kind of model, is damaged, or asks for what a model
            does not need.
        """
        config, tokenizer = load_model(
            source, ("extractor", "recognizer"), device, trusted
        )
        try:
            if search is None:
                search = ngram_search(config["ngram"], config["recognizer"])
            asr = cls(
                config["extractor"],
                config["recognizer"],
                tokenizer,
                config.get("sample_rate"),
                search,
                chunk_s,
            )
            asr.ngram = config["ngram"]
            return asr
        except ValueError as error:
            raise ValueError(f"the model {source or DEFAULT_MODEL}: {error}") from error

    def transcribe_file(self, path: str | pathlib.Path) -> Transcription:
        """Recognise an audio file of any length.

        Arguments
        ---------
        path : str or pathlib.Path
            Any container, rate and channel count that libsndfile reads.

        Returns
        -------
        hyperconformer.core.words.Transcription

        Raises
        ------
        hyperconformer.audio.AudioError
            If the file cannot be used; the message names it.
        """
        try:
            return self._transcribe(read_blocks(path, self.sample_rate_hz))
        except AudioError:
            raise
        except ValueError as error:
            raise AudioError(f"{path}: {error}") from error

    def transcribe_blocks(
        self,
        blocks: Iterable[torch.Tensor],
        on_text: Callable[[str], object] | None = None,
    ) -> Transcription:
        """Recognise samples that come in blocks.

        Arguments
        ---------
        blocks : iterable of torch.Tensor
            (N,) float32 samples each at the model's rate, as
            :func:`hyperconformer.audio.read_blocks` yields them.
        on_text : callable, optional
            Called with each piece of the text as soon as it is known; the pieces
            together are the text.

        Returns
        -------
        hyperconformer.core.words.Transcription

        Raises
        ------
        ValueError
            If there are too few samples.
        """
        return self._transcribe(blocks, on_text)

    def transcribe(
        self, samples: np.ndarray | torch.Tensor, sample_rate_hz: int
    ) -> Transcription:
        """Recognise samples.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (N,) or (channels, N), of a type that
            :func:`hyperconformer.audio.as_samples` takes.
        sample_rate_hz : int
            Their rate.

        Returns
        -------
        hyperconformer.core.words.Transcription

        Raises
        ------
        ValueError
            If there are too few, their type is none of audio, or one is not finite.
        """
        return self._transcribe(
            [prepare_samples(samples, sample_rate_hz, self.sample_rate_hz)]
        )

    def align(
        self, samples: np.ndarray | torch.Tensor, sample_rate_hz: int, text: str
    ) -> tuple[Word, ...]:
        """When the words of a known text were spoken.

        Arguments
        ---------
        samples : numpy.ndarray or torch.Tensor
            (N,) or (channels, N), as for :meth:`transcribe`; at most ``chunk_s``.
        sample_rate_hz : int
            Their rate.
        text : str
            What is said, in any letter case.

        Returns
        -------
        tuple of hyperconformer.core.words.Word

        Raises
        ------
        ValueError
            If the text has characters that the model cannot write, or the audio is too
            short for it, too long or not finite.
        """
        rate = self.sample_rate_hz
        speech = self._one_chunk(prepare_samples(samples, sample_rate_hz, rate))
        text = as_written(text, self.tokenizer)
        if unknown := unwritable(text, self.tokenizer):
            raise ValueError(
                f"the model cannot write {' '.join(dict.fromkeys(unknown))}, which the "
                f"text {text!r} holds"
            )
        padded, before, _ = with_silence(speech, rate, self.silence_s)
        recognition = self._recognize([padded])
        words = align_words(
            recognition.ctc[0],
            self.tokenizer.encode(text),
            self.tokenizer,
            self.frame_samples / rate,
        )
        seconds = len(speech) / rate
        return tuple(word.moved(-before / rate, seconds) for word in words)

    def transcribe_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor
    ) -> list[Transcription]:
        """Recognise a padded batch, each utterance as if alone.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, N) samples at the model's rate, each at most ``chunk_s`` long; padding
            may hold anything.
        wav_lens : torch.Tensor
            (B,) relative lengths in (0, 1].

        Returns
        -------
        list of hyperconformer.core.words.Transcription

        Raises
        ------
        ValueError
            If a shape is wrong, an utterance too short or too long, or a sample not
            finite.
        """
        for name, given in (("wavs", wavs), ("wav_lens", wav_lens)):
            if not isinstance(given, torch.Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(given).__name__}")
        if wavs.dim() != 2 or wav_lens.shape != wavs.shape[:1]:
            raise ValueError(
                "wavs must be (B, N) and wav_lens (B,), got "
                f"{tuple(wavs.shape)} and {tuple(wav_lens.shape)}"
            )
        counts = relative_to_frames(wav_lens, wavs.shape[1]).tolist()
        rate = self.sample_rate_hz
        utterances = [
            self._one_chunk(prepare_samples(wav[:count], rate, rate))
            for wav, count in zip(wavs, counts)
        ]
        padded = [with_silence(wav, rate, self.silence_s) for wav in utterances]
        recognition = self._recognize([samples for samples, _, _ in padded])
        results = []
        for index, (samples, *silence) in enumerate(padded):
            log_probs = recognition.ctc[index, : recognition.lengths[index]]
            encoded = recognition.encoded[index, : recognition.lengths[index]]
            if samples.abs().max() < SILENCE:
                log_probs, encoded = self._recognize_silence(len(samples))
            parts = self._parts(
                [(log_probs, encoded, 0)],
                lambda begin, end, wav=samples: wav[begin:end],
            )
            results.append(self._result(parts, len(samples), *silence))
        return results

    def _transcribe(self, blocks, on_text=None):
        """Recognise audio that comes in blocks of samples."""
        rate = self.sample_rate_hz
        edges = Edges(blocks, rate, self.silence_s)
        # A stretch of speech may begin in the chunk before the last one that was read
        # whole, and the reader is a chunk ahead.
        tape = Tape(
            edges, int(BLOCK_S * rate), int((4 * self.chunk_s + BLOCK_S) * rate)
        )
        chunks = split_audio(
            tape,
            int(self.chunk_s * rate),
            int(self._overlap_s * rate),
            self.frame_samples,
            int(QUIET_S * rate),
        )
        parts, is_first = [], True
        for part in self._parts(self._segments(chunks, edges), tape.read):
            parts.append(part)
            hypotheses, _, glue = part
            text = hypotheses[0].text.strip()
            if on_text is not None and text:
                on_text(text if is_first else glue + text)
                is_first = False
        # Only now is it known how many samples there were.
        return self._result(parts, tape.samples, edges.before, edges.after)

    @property
    def _overlap_s(self):
        """How far a chunk reaches into its neighbours."""
        return min(OVERLAP_S, self.chunk_s / 4)

    def _segments(self, chunks, edges):
        """Each chunk's own log-probabilities and frames, and where they begin."""
        waiting = None  # what the chunk before still has to give
        for chunk in chunks:
            first = chunk.offset // self.frame_samples
            if chunk.offset == 0:
                self._check_duration(len(chunk.samples) - edges.before - edges.after)
            log_probs, encoded = self._recognize_alone(chunk.samples)
            if waiting is not None:
                before, before_encoded, start = waiting
                # The last chunk may end before its predecessor's context does.
                shared = before[first - start :][: len(log_probs)]
                middle = (chunk.begin - chunk.offset) // self.frame_samples
                taken = merge_frame(shared, log_probs, middle, self.starts_word)
                kept = first - start + taken
                yield before[:kept], before_encoded[:kept], start
                first, log_probs = first + taken, log_probs[taken:]
                encoded = encoded[taken:]
            waiting = log_probs, encoded, first
        yield waiting

    def _recognize_alone(self, samples):
        if samples.abs().max() < SILENCE:
            return self._recognize_silence(len(samples))
        recognition = self._recognize([samples])
        return recognition.ctc[0], recognition.encoded[0]

    def _recognize_silence(self, samples):
        """What a recogniser should say of silence: blanks, for sure."""
        frames = samples // self.frame_samples + 1
        head = self.recognizer.ctc_head
        log_probs = torch.full((frames, head.out_features), IMPOSSIBLE)
        log_probs[:, BLANK_INDEX] = 0.0
        return log_probs, torch.zeros(frames, head.in_features)

    def _decode(self, log_probs, encoded, first_frame):
        """Hypotheses of a part, and the words of the best one."""
        if (log_probs[:, BLANK_INDEX] == 0).all():  # a decoder might invent something
            return [Hypothesis("", 0.0)], ()
        frames = log_probs if self.search.takes == "ctc" else encoded
        hypotheses = self.search.decode(frames, self.tokenizer)
        frame_s = self.frame_samples / self.sample_rate_hz
        try:
            words = align_words(
                log_probs,
                hypotheses[0].tokens,
                self.tokenizer,
                frame_s,
                first_frame * frame_s,
            )
        except ValueError:  # a decoder may say more than CTC has frames for
            words = ()
        return hypotheses, words

    def _parts(self, segments, read):
        """Hypotheses of each part, the words of the best, and what glues it on.

        ``read(begin, end)`` gives samples once more.
        """
        pause = PAUSE_S * self.sample_rate_hz / self.frame_samples
        stretches = self._apart(segments, pause, read)
        for *part, glue in cut_at_pauses(stretches, pause, self.starts_word):
            yield *self._decode(*part), glue

    def _apart(self, segments, pause, read):
        """Stretches of speech, each recognised by itself where it can be."""
        rate = self.sample_rate_hz / self.frame_samples
        stretches = speech_stretches(
            segments,
            self.audible,
            Pauses(
                pause=pause,
                short=SHORT_PAUSE_S * rate,
                margin=int(MARGIN_S * rate),
                usual=int(min(USUAL_S, self.chunk_s) * rate),
                longest=int((self.chunk_s + 2 * self._overlap_s) * rate),
            ),
        )
        for stretch in stretches:
            log_probs, encoded = stretch.log_probs, stretch.encoded
            if stretch.apart:
                end = stretch.first + len(log_probs)
                samples = read(
                    stretch.first * self.frame_samples, end * self.frame_samples
                )
                log_probs, encoded = self._recognize_alone(samples)
            yield log_probs, encoded, stretch.first

    def _result(self, parts, samples, before, after):
        """One result of the parts of an utterance, with silence before and after it."""
        readings, words = [], []
        for hypotheses, more, glue in parts:
            texts = [(each.text.strip(), each.score) for each in hypotheses]
            readings.append([(text and glue + text, score) for text, score in texts])
            if words and more and not glue:
                words[-1], more = words[-1].continued(more[0]), more[1:]
            words.extend(more)
        nbest = merge_nbest(readings, self.search.nbest)
        duration_s = (samples - before - after) / self.sample_rate_hz
        if before or after:
            shift_s = -before / self.sample_rate_hz
            words = [word.moved(shift_s, duration_s) for word in words]
        return Transcription(
            text=nbest[0][0],
            words=tuple(words),
            nbest=tuple(Hypothesis(text, score) for text, score in nbest),
            duration_s=duration_s,
        )

    def _one_chunk(self, samples):
        """Samples that are to be recognised at once, if they may be."""
        self._check_duration(len(samples))
        seconds = len(samples) / self.sample_rate_hz
        if seconds > self.chunk_s:
            raise ValueError(
                f"the audio lasts {seconds:.1f} s; what is longer than chunk_s = "
                f"{self.chunk_s} goes to transcribe"
            )
        return samples

    def _check_duration(self, samples):
        check_duration(samples / self.sample_rate_hz)

    def _check_parts(self):
        rate = self.sample_rate_hz
        if not isinstance(rate, int) or not 1000 <= rate <= MAX_RATE_HZ:
            raise ValueError(
                f"sample_rate must be from 1000 to {MAX_RATE_HZ} Hz, got {rate!r}"
            )
        tokens = self.tokenizer.vocab_size()
        outputs = self.recognizer.ctc_head.out_features
        if tokens != outputs:
            raise ValueError(
                f"its tokenizer has {tokens} tokens, its recogniser {outputs}"
            )
        try:
            self._recognize([torch.zeros(rate // 2)])
        # Settings that fit the weights but not each other fail in many ways.
        except Exception as error:
            raise ValueError(
                f"it does not run: {type(error).__name__}: {error}"
            ) from error

    @torch.no_grad()
    def _recognize(self, utterances):
        device = self.extractor.mean.device
        counts = torch.tensor([len(samples) for samples in utterances], device=device)
        wavs = pad_sequence(utterances, batch_first=True).to(device)
        features, lengths = self.extractor(wavs, counts / wavs.shape[1])
        recognition = self.recognizer(features, lengths)
        # Searches and alignment run on the CPU; a decoder's runs where the model is.
        return recognition._replace(ctc=recognition.ctc.cpu())


def check_duration(seconds):
    """Refuse a recording that is too short to hold a word.

    Raises
    ------
    ValueError
        If it is shorter than ``MIN_DURATION_S``.
    """
    if seconds < MIN_DURATION_S:
        raise ValueError(
            f"the audio lasts {seconds:.4f} s; at least {MIN_DURATION_S} s is needed"
        )
