"""The whole recogniser: front end, encoder, CTC head, and maybe a second head."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from hyperconformer.core.masks import ChunkRule, lengths_to_padding_mask
from hyperconformer.core.state import State, prefixed, within
from hyperconformer.model.frontend import ConvolutionFrontEnd
from hyperconformer.model.transducer import Transducer
from hyperconformer.model.transformer_asr import HyperConformerASR
from hyperconformer.nn.linear import Linear


class Recognition(NamedTuple):
    """What a recogniser says of a batch, log-probabilities in at least float32.

    ``ctc`` (B, T, V) log-probabilities; ``lengths`` (B,) int64 frames of them;
    ``encoded`` (B, T, D); ``seq`` (B, U, V) log-probabilities of the decoder, and
    ``transducer`` (B, T, U, V) logits, None without targets or such a head; ``hidden``
    the input and the output of every layer of the encoder, each (B, T, D).
    """

    ctc: torch.Tensor
    lengths: torch.Tensor
    encoded: torch.Tensor
    seq: torch.Tensor | None
    transducer: torch.Tensor | None = None
    hidden: Sequence[torch.Tensor] = ()

    @property
    def relative_lengths(self):
        """(B,) lengths over the padded length, as SpeechBrain's functions want them."""
        return self.lengths / self.ctc.shape[1]


class Recognizer(nn.Module):
    """Features to log-probabilities of tokens.

    One module, so that one wrapper distributes it, and one file of weights holds it.

    Arguments
    ---------
    frontend : hyperconformer.model.frontend.ConvolutionFrontEnd
        Features to subsampled frames.
    transformer : hyperconformer.model.transformer_asr.HyperConformerASR
        Encoder and, if it was built with one, decoder.
    d_model : int
        Width of the encoder's frames.
    vocab_size : int
        Number of tokens V; token 0 is the CTC blank.
    transducer : hyperconformer.model.transducer.Transducer, optional
        A second head, in a decoder's place.
    phones : list of str, optional
        The phones of a second CTC head, for
        :class:`hyperconformer.search.lexicon.PhoneSearcher`. Its output 0 is the blank.

    Raises
    ------
    ValueError
        If there are both a decoder and a transducer.
    """

    def __init__(
        self,
        frontend: ConvolutionFrontEnd,
        transformer: HyperConformerASR,
        d_model: int,
        vocab_size: int,
        transducer: Transducer | None = None,
        phones: list[str] | None = None,
    ):
        super().__init__()
        self.frontend = frontend
        self.transformer = transformer
        self.ctc_head = Linear(d_model, vocab_size)
        self.decoder_head: Linear | None = None
        if hasattr(transformer, "decoder"):
            self.decoder_head = Linear(d_model, vocab_size)
        self.transducer = transducer
        self.phones = phones
        self.phone_head: Linear | None = None
        if phones:
            self.phone_head = Linear(d_model, len(phones) + 1)
        if transducer is not None and self.decoder_head is not None:
            raise ValueError("a transducer stands in a decoder's place, got both")

    @property
    def needs_targets(self) -> bool:
        """Whether a head is trained on the tokens so far."""
        return self.decoder_head is not None or self.transducer is not None

    @property
    def steps_to_encoded(self) -> bool:
        """Whether :meth:`step` returns frames for several heads, not one's outcome."""
        return self.transducer is not None or self.phone_head is not None

    def forward(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor,
        targets: torch.Tensor | None = None,
        dynchunktrain_config: DynChunkTrainConfig | None = None,
    ) -> Recognition:
        """Recognise.

        Arguments
        ---------
        features : torch.Tensor
            (B, T, F); padding may hold anything.
        lengths : torch.Tensor
            (B,) int64 frames.
        targets : torch.Tensor, optional
            (B, U) int64 tokens, begun with the sentence begin, for the decoder or
            the transducer.
        dynchunktrain_config : speechbrain DynChunkTrainConfig, optional
            How far each frame of the encoder may see; None = the whole utterance.

        Returns
        -------
        Recognition

        Raises
        ------
        ValueError
            If targets are given and no head takes them.
        """
        x, lengths = self.frontend(features, lengths)
        encoded, hidden, _ = self.transformer.encode_layers(
            x, lengths / x.shape[1], dynchunktrain_config
        )
        ctc = self.ctc_log_probs(encoded)
        seq = logits = None
        if targets is not None and not self.needs_targets:
            raise ValueError("targets given, but num_decoder_layers is 0")
        if targets is not None and self.transducer is not None:
            logits = self.transducer(encoded, targets[:, 1:])
        elif targets is not None:
            mask = lengths_to_padding_mask(lengths, encoded.shape[1])
            decoded = self.transformer.decode_targets(targets, encoded, mask)
            assert self.decoder_head is not None  # It needs targets.
            seq = log_probs(self.decoder_head(decoded))
        return Recognition(ctc, lengths, encoded, seq, logits, hidden)

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: ChunkRule,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any feature; see :meth:`TokenMixer.init_state`.

        Raises
        ------
        ValueError
            If a part cannot stream.
        """
        like: dict[str, Any] = {"device": device, "dtype": dtype}
        return {
            **prefixed("frontend", self.frontend.init_state(batch_size, **like)),
            **prefixed(
                "transformer",
                self.transformer.init_state(batch_size, chunk=chunk, **like),
            ),
        }

    def step(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor,
        chunk: ChunkRule,
        state: State,
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Recognise the next features of each stream.

        Arguments
        ---------
        features : torch.Tensor
            (B, T, F); padding may hold anything.
        lengths : torch.Tensor
            (B,) int64 real features: whole chunks, but for a stream's last step.
        chunk, state
            See :meth:`TokenMixer.forward`. Under a rule with right frames, a step
            takes one chunk and its look-ahead.

        Returns
        -------
        frames : torch.Tensor
            (B, T', V) log-probabilities of the CTC head; the encoder's (B, T', D)
            frames where ``steps_to_encoded``. Those of the look-ahead are left out.
        lengths : torch.Tensor
            (B,) int64 frames of them.
        state : dict of str to torch.Tensor
            The state after these features, without the look-ahead.
        """
        own = chunk.chunk_frames if chunk.right_frames else None
        x, lengths, front = self.frontend.step(
            features,
            lengths,
            within("frontend", state),
            keep=None if own is None else own * self.frontend.stride,
        )
        encoded, after = self.transformer.encode_step(
            x, lengths, chunk, within("transformer", state)
        )
        if own is not None:
            lengths = lengths.clamp(max=own)
        new_state = {**prefixed("frontend", front), **prefixed("transformer", after)}
        if not self.steps_to_encoded:
            encoded = self.ctc_log_probs(encoded)
        return encoded, lengths, new_state

    def ctc_log_probs(self, encoded: torch.Tensor) -> torch.Tensor:
        """What the CTC head says of the encoder's frames.

        Arguments
        ---------
        encoded : torch.Tensor
            (..., D).

        Returns
        -------
        torch.Tensor
            (..., V), in at least float32.
        """
        return log_probs(self.ctc_head(encoded))

    def phone_log_probs(self, encoded: torch.Tensor) -> torch.Tensor:
        """As :meth:`ctc_log_probs`, (..., number of phones + 1) of the phone head.

        Raises
        ------
        ValueError
            If the recogniser has no phone head.
        """
        if self.phone_head is None:
            raise ValueError("this recogniser has no phone head")
        return log_probs(self.phone_head(encoded))


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log-softmax in at least single precision, also under autocast.

    NumPy has no bfloat16, and autocast on CPUs leaves a log-softmax in it: a loss would
    be computed from 8 bits.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.log_softmax(dim=-1, dtype=dtype)
