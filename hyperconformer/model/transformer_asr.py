"""``HyperConformerASR``: SpeechBrain's TransformerASR with a pluggable token mixer.

Subclassed because SpeechBrain's class closes its list of attention types with an
assertion, branches on their names, and lets padded frames into real ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    get_key_padding_mask,
    get_lookahead_mask,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.activations import Swish
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from hyperconformer.core.masks import (
    ChunkRule,
    lengths_to_padding_mask,
    relative_to_frames,
)
from hyperconformer.core.recording import is_recorded
from hyperconformer.core.state import State
from hyperconformer.encoders.layer_mixers import (
    MixerSetting,
    OptionsSetting,
    layer_mixers,
)
from hyperconformer.encoders.registry import build_encoder, encoder_class
from hyperconformer.mixers.base import TokenMixer
from hyperconformer.mixers.hypermixing import sinusoids
from hyperconformer.model.chunks import chunk_rule
from hyperconformer.nn.replace import replace_layers

# The attention types that SpeechBrain knows; it initialises their weights itself.
STOCK_TYPES = ("regularMHA", "RelPosMHAXL", "RoPEMHA", "hypermixing")


class HyperConformerASR(TransformerASR):
    """Encoder and decoder for speech recognition, any token mixer in the encoder.

    The constructor takes what ``TransformerASR`` takes, so that a SpeechBrain YAML
    file needs only another class path; state dicts of SpeechBrain's conformers
    load with ``strict=True`` and give the same output for one utterance. A batch
    gives what each of its utterances gives alone.

    Arguments
    ---------
    tgt_vocab : int
        Number of output tokens.
    input_size : int
        Width of the features.
    d_model : int
        Width D of the frames.
    nhead : int
        Number of heads.
    num_encoder_layers : int
        Layers of the encoder, at least 1.
    num_decoder_layers : int
        Layers of the attention decoder; 0 = none.
    d_ffn : int
        Width of the feed-forward layers, and the hypernet size of HyperMixing.
    dropout : float
        Dropout rate.
    activation : type
        Activation class of the decoder.
    positional_encoding : str or None
        ``"fixed_abs_sine"`` or None, as in SpeechBrain.
    normalize_before : bool
        Pre-norm (True, required by the Conformer) or post-norm.
    kernel_size : int
        Taps of the depthwise convolution.
    bias : bool
        Whether the convolution modules have biases.
    encoder_module : str
        ``"conformer"``, ``"transformer"`` (HyperMixer) or ``"branchformer"``.
    conformer_activation : type
        Activation class of the Conformer.
    branchformer_activation : type
        Activation class of the Branchformer.
    attention_type : str, type, list or dict
        Name of a registered mixer, or a TokenMixer class; or the mixer of each layer,
        see :func:`~hyperconformer.encoders.layer_mixers.layer_mixers`.
    max_length : int
        Longest target sequence (position codes of the decoder).
    causal : bool, optional
        Whether the encoder may not look ahead; None means True with a warning,
        as in SpeechBrain.
    csgu_linear_units : int
        Width of the Branchformer's gating branch.
    gate_activation : type
        Activation class of the Branchformer's gate.
    use_linear_after_conv : bool
        Whether a Linear follows the convolution of the Branchformer's gate.
    output_hidden_states : bool
        Whether ``encode`` and ``forward`` also return every layer's output.
    layerdrop_prob : float
        Probability of leaving out an encoder layer in training.
    mixer_options : dict or list, optional
        Options of the mixer, or of the mixer of each layer; see ``layer_mixers``.

    Raises
    ------
    ValueError
        If a name or option is unknown, or the settings contradict each other.

    Example
    -------
    >>> model = HyperConformerASR(
    ...     tgt_vocab=10, input_size=8, d_model=16, nhead=2, num_encoder_layers=1,
    ...     num_decoder_layers=1, d_ffn=32, normalize_before=True, causal=False,
    ... )
    >>> encoded, decoded = model(torch.rand(2, 9, 8), torch.ones(2, 4).long())
    >>> encoded.shape, decoded.shape
    (torch.Size([2, 9, 16]), torch.Size([2, 4, 16]))
    """

    def __init__(
        self,
        tgt_vocab: int,
        input_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ffn: int = 2048,
        dropout: float = 0.1,
        activation: Callable[[], nn.Module] = nn.ReLU,
        positional_encoding: str | None = "fixed_abs_sine",
        normalize_before: bool = False,
        kernel_size: int = 31,
        bias: bool = True,
        encoder_module: str = "conformer",
        conformer_activation: Callable[[], nn.Module] = Swish,
        branchformer_activation: Callable[[], nn.Module] = nn.GELU,
        attention_type: MixerSetting = "hypermixing",
        max_length: int = 2500,
        causal: bool | None = None,
        csgu_linear_units: int = 3072,
        gate_activation: Callable[[], nn.Module] = nn.Identity,
        use_linear_after_conv: bool = False,
        output_hidden_states: bool = False,
        layerdrop_prob: float = 0.0,
        mixer_options: OptionsSetting = None,
    ):
        encoder = encoder_class(
            encoder_module, normalize_before=normalize_before, causal=bool(causal)
        )
        if num_encoder_layers < 1:
            raise ValueError(
                f"num_encoder_layers must be >= 1, got {num_encoder_layers}"
            )
        chosen = layer_mixers(attention_type, mixer_options, num_encoder_layers)
        mixers = [mixer for mixer, _ in chosen]
        # SpeechBrain's class knows one type: where layers differ, one without codes of
        # its own, so that the encoder may add absolute ones.
        alike = all(mixer == mixers[0] for mixer in mixers)
        stock = mixers[0] if alike and mixers[0] in STOCK_TYPES else "hypermixing"
        super().__init__(
            tgt_vocab,
            input_size,
            d_model=d_model,
            nhead=nhead,
            # A layer that is replaced below: SpeechBrain refuses to build none.
            num_encoder_layers=1,
            num_decoder_layers=num_decoder_layers,
            d_ffn=d_ffn,
            dropout=dropout,
            activation=activation,
            positional_encoding=positional_encoding,
            normalize_before=normalize_before,
            kernel_size=kernel_size,
            bias=bias,
            # Likewise the encoder's kind: it is only to be replaced.
            encoder_module="transformer",
            attention_type=stock,
            max_length=max_length,
            causal=causal,
            output_hidden_states=output_hidden_states,
            layerdrop_prob=layerdrop_prob,
        )
        self.attention_type = mixers[0] if alike else attention_type
        if num_decoder_layers > 0 and positional_encoding is None:
            raise ValueError(
                "the decoder needs positional_encoding: fixed_abs_sine, got None"
            )
        activations = {
            "branchformer": branchformer_activation,
            "conformer": conformer_activation,
        }
        self.encoder = build_encoder(
            encoder,
            num_encoder_layers,
            d_model,
            d_ffn=d_ffn,
            nhead=nhead,
            kernel_size=kernel_size,
            activation=_known(activations.get(encoder_module, activation)),
            bias=bias,
            dropout=dropout,
            normalize_before=normalize_before,
            causal=self.causal,
            attention_type=attention_type,
            mixer_options=mixer_options,
            csgu_linear_units=csgu_linear_units,
            gate_activation=gate_activation,
            use_linear_after_conv=use_linear_after_conv,
            layerdrop_prob=layerdrop_prob,
        )
        # Read of what was built: a mixer may need them with some of its options only.
        blind = [
            type(part).__name__
            for part in self.encoder.modules()
            if isinstance(part, TokenMixer) and part.needs_position
        ]
        self.adds_position = bool(blind)
        if self.adds_position and positional_encoding is None:
            raise ValueError(
                f"{blind[0]} as configured is blind to order: it needs "
                "positional_encoding: fixed_abs_sine, got None"
            )
        self._init_params(mixers)
        replace_layers(self)

    def _init_params(self, mixers=()):
        """Xavier initialisation as in SpeechBrain, except for mixers with their own.

        ``mixers`` are those of the layers; SpeechBrain's constructor has none yet.
        """
        own = {
            id(parameter)
            for layer, mixer in zip(self.encoder.layers, mixers)
            if mixer not in STOCK_TYPES
            for module in layer.modules()
            if isinstance(module, TokenMixer)
            for parameter in module.parameters()
        }
        for parameter in self.parameters():
            if parameter.dim() > 1 and id(parameter) not in own:
                nn.init.xavier_normal_(parameter)

    def encode(
        self,
        src: torch.Tensor,
        wav_len: torch.Tensor | None = None,
        pad_idx: int = 0,
        dynchunktrain_config: DynChunkTrainConfig | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode features.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F1, F2) features; padding may hold anything.
        wav_len : torch.Tensor, optional
            (B,) relative lengths in (0, 1]; None = no padding.
        pad_idx : int
            Not used by the encoder; kept for SpeechBrain's callers.
        dynchunktrain_config : speechbrain DynChunkTrainConfig, optional
            Chunk size and left context for dynamic chunk training.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D).
        hidden : list of torch.Tensor
            Only with ``output_hidden_states``: each (B, T, D).
        """
        encoded, hidden, _ = self.encode_layers(src, wav_len, dynchunktrain_config)
        return (encoded, hidden) if self.output_hidden_states else encoded

    def encode_layers(
        self,
        src: torch.Tensor,
        wav_len: torch.Tensor | None = None,
        dynchunktrain_config: DynChunkTrainConfig | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """Encode features, and keep what each layer says.

        Arguments
        ---------
        src, wav_len, dynchunktrain_config
            As in :meth:`encode`.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D).
        hidden : list of torch.Tensor
            The input and the output of every layer that ran, each (B, T, D).
        padding_mask : torch.Tensor or None
            (B, T) bool, True = padding; None where there is none.
        """
        src = src.flatten(2)
        padding_mask = None
        if wav_len is not None:
            frames = relative_to_frames(wav_len, src.shape[1])
            if is_recorded() or (frames < src.shape[1]).any():
                padding_mask = lengths_to_padding_mask(frames, src.shape[1])
                src = src.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        src = self.custom_src_module(src)
        if self.adds_position:
            src = src + self.positional_encoding(src)
        encoded, hidden = self.encoder(
            src, padding_mask, chunk_rule(dynchunktrain_config)
        )
        return encoded, hidden, padding_mask

    def forward(
        self,
        src: torch.Tensor,
        tgt: torch.Tensor | None,
        wav_len: torch.Tensor | None = None,
        pad_idx: int = 0,
        dynchunktrain_config: DynChunkTrainConfig | None = None,
    ) -> torch.Tensor | tuple[Any, ...]:
        """Encode features and decode targets (teacher forcing).

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F1, F2) features.
        tgt : torch.Tensor
            (B, U) int64 target tokens, or None to encode only.
        wav_len : torch.Tensor, optional
            (B,) relative lengths of the features.
        pad_idx : int
            Padding token of ``tgt``.
        dynchunktrain_config : speechbrain DynChunkTrainConfig, optional
            As in :meth:`encode`.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D).
        hidden : list of torch.Tensor
            Only with ``output_hidden_states``.
        decoded : torch.Tensor
            (B, U, D); left out when ``tgt`` is None.
        """
        encoded, hidden, padding_mask = self.encode_layers(
            src, wav_len, dynchunktrain_config
        )
        outputs = (encoded, hidden) if self.output_hidden_states else (encoded,)
        if tgt is None:
            return outputs if self.output_hidden_states else encoded
        return (*outputs, self.decode_targets(tgt, encoded, padding_mask, pad_idx))

    def decode_targets(
        self,
        tgt: torch.Tensor,
        encoded: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        pad_idx: int = 0,
    ) -> torch.Tensor:
        """Decode known targets (teacher forcing).

        Arguments
        ---------
        tgt : torch.Tensor
            (B, U) int64 target tokens.
        encoded : torch.Tensor
            (B, T, D) encoder frames.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding.
        pad_idx : int
            Padding token of ``tgt``.

        Returns
        -------
        torch.Tensor
            (B, U, D).
        """
        decoded, _, _ = self.decoder(
            tgt=self._embed_targets(tgt),
            memory=encoded,
            tgt_mask=get_lookahead_mask(tgt),
            tgt_key_padding_mask=get_key_padding_mask(tgt, pad_idx=pad_idx),
            memory_key_padding_mask=padding_mask,
        )
        return decoded

    @torch.no_grad()
    def decode(
        self,
        tgt: torch.Tensor,
        encoder_out: torch.Tensor,
        enc_len: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One decoding step of a searcher.

        Arguments
        ---------
        tgt : torch.Tensor
            (B, U) int64 tokens so far.
        encoder_out : torch.Tensor
            (B, T, D) encoded features.
        enc_len : torch.Tensor, optional
            (B,) lengths of ``encoder_out`` in frames; all may be below T.

        Returns
        -------
        decoded : torch.Tensor
            (B, U, D).
        attention : torch.Tensor
            (B, U, T) weights of the last layer's cross-attention.
        """
        mask = None
        if enc_len is not None:
            mask = lengths_to_padding_mask(enc_len, encoder_out.shape[1])
        decoded, _, attention = self.decoder(
            self._embed_targets(tgt),
            encoder_out,
            tgt_mask=get_lookahead_mask(tgt),
            memory_key_padding_mask=mask,
        )
        return decoded, attention[-1]

    def _embed_targets(self, tgt):
        embedded = self.custom_tgt_module(tgt)
        # With relative attention SpeechBrain keeps the decoder's codes elsewhere.
        codes = getattr(self, "positional_encoding_decoder", None)
        if codes is None:
            codes = self.positional_encoding
        return embedded + codes(embedded)

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: ChunkRule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any frame; see :meth:`TokenMixer.init_state`.

        Raises
        ------
        ValueError
            If the encoder cannot stream; without a rule it must be causal.
        """
        state = self.encoder.init_state(
            batch_size, chunk=chunk, device=device, dtype=dtype
        )
        state["frames_seen"] = torch.zeros(batch_size, dtype=torch.int64, device=device)
        return state

    def encode_step(
        self,
        src: torch.Tensor,
        lengths: torch.Tensor,
        chunk: ChunkRule | None,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        """Encode the next frames of each stream.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F1, F2) features; padding may hold anything.
        lengths : torch.Tensor
            (B,) int64 real frames: whole chunks, but for a stream's last step.
        chunk, state
            See :meth:`TokenMixer.forward`. Under a rule with right frames, a step
            takes one chunk and its look-ahead.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D); of a chunk and its look-ahead, the chunk.
        state : dict of str to torch.Tensor
            The state after these frames, without the look-ahead.
        """
        src = src.flatten(2)
        padding_mask = None
        if is_recorded() or (lengths < src.shape[1]).any():
            padding_mask = lengths_to_padding_mask(lengths, src.shape[1])
            src = src.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        src = self.custom_src_module(src)
        seen = state["frames_seen"]
        if self.adds_position:
            # By each stream's own clock; SpeechBrain's table of codes ends somewhere.
            position = seen[:, None] + torch.arange(src.shape[1], device=src.device)
            src = src + sinusoids(position, src.shape[-1]).to(src.dtype)
        encoded, new_state = self.encoder.step(src, padding_mask, chunk, state)
        if chunk is not None and chunk.right_frames:
            lengths = lengths.clamp(max=chunk.chunk_frames)
        return encoded, {**new_state, "frames_seen": seen + lengths}

    def make_streaming_context(
        self,
        dynchunktrain_config: DynChunkTrainConfig,
        encoder_kwargs: dict[str, Any] | None = None,
    ) -> "StreamingContext":
        """A stream in SpeechBrain's manner; see :meth:`encode_streaming`.

        Arguments
        ---------
        dynchunktrain_config : speechbrain DynChunkTrainConfig
            Chunk size and left context.
        encoder_kwargs : dict, optional
            Options of SpeechBrain's encoders; ours have none.

        Returns
        -------
        StreamingContext

        Raises
        ------
        ValueError
            If the encoder cannot stream, options are given, or the chunks have a right
            context, which SpeechBrain's streams do not bring.
        """
        if encoder_kwargs:
            raise ValueError(f"the encoder takes no options, got {encoder_kwargs}")
        rule = chunk_rule(dynchunktrain_config)
        if rule.right_frames:
            raise ValueError(
                "SpeechBrain's streams bring no right context; "
                f"hyperconformer.StreamingModel does, got {rule}"
            )
        self.init_state(1, chunk=rule)  # An encoder that cannot stream says so now.
        return StreamingContext(rule)

    def encode_streaming(
        self, src: torch.Tensor, context: "StreamingContext"
    ) -> torch.Tensor:
        """Encode the next chunks of streams that go in step, as SpeechBrain does.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F1, F2) features: whole chunks, but for the last step.
        context : StreamingContext
            From :meth:`make_streaming_context`; its state is replaced.

        Returns
        -------
        torch.Tensor
            (B, T, D).
        """
        batch, frames = src.shape[:2]
        if context.state is None:
            context.state = self.init_state(
                batch, chunk=context.chunk, device=src.device, dtype=src.dtype
            )
        lengths = torch.full((batch,), frames, device=src.device)
        encoded, context.state = self.encode_step(
            src, lengths, context.chunk, context.state
        )
        return encoded


@dataclass
class StreamingContext:
    """What :meth:`HyperConformerASR.encode_streaming` remembers: rule and state."""

    chunk: ChunkRule
    state: State | None = None


def _known(activation):
    """torch's class for SpeechBrain's Swish, the same with its beta of 1: layers know
    how to make it one operator with what follows."""
    return nn.SiLU if activation is Swish else activation
