"""What every encoder shares: the stack of layers, the feed-forward, the mixer's place.

The parameters bear SpeechBrain's names, so that its checkpoints load here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hyperconformer.core.masks import ChunkRule
from hyperconformer.core.state import State, prefixed, within
from hyperconformer.core.windows import own_frames, unfold, window_padding
from hyperconformer.encoders.layer_mixers import layer_mixers, naming_layer
from hyperconformer.mixers.registry import (
    build_mixer,
    check_options,
    mixer_class,
    mixer_options,
)
from hyperconformer.nn.normalization import named_norm


class EncoderStack(nn.Module):
    """Layers of one class, one after another, and a final LayerNorm.

    A subclass names the class of its layers. Those that stream also have
    ``init_state``, ``step`` and ``look_ahead``, with this class's arguments.

    Attributes
    ----------
    layer_class : type
        A module that maps ``(x, padding_mask, chunk)`` to frames like ``x``.
    requires : dict of str to tuple
        Option of a model to the one value that suits this encoder, and the reason.

    Arguments
    ---------
    num_layers : int
        Number of layers.
    d_model : int
        Width D of the frames.
    layerdrop_prob : float
        Probability of leaving out each layer in training.
    **layer_options
        As the layer's class. With ``attention_type`` each layer gets its own mixer and
        ``mixer_options``, see
        :func:`~hyperconformer.encoders.layer_mixers.layer_mixers`.

    Raises
    ------
    ValueError
        As the layer's class, and as ``layer_mixers``.
    """

    layer_class: Callable[..., nn.Module]
    requires: dict[str, tuple[Any, str]] = {}

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        *,
        layerdrop_prob: float = 0.0,
        **layer_options: Any,
    ):
        super().__init__()
        own: list[dict[str, Any]] = [{} for _ in range(num_layers)]
        if "attention_type" in layer_options:
            chosen = layer_mixers(
                layer_options["attention_type"],
                layer_options.get("mixer_options"),
                num_layers,
            )
            own = [{"attention_type": m, "mixer_options": o} for m, o in chosen]
        self.layers = nn.ModuleList()
        for index, options in enumerate(own):
            with naming_layer(index, own):
                self.layers.append(
                    self.layer_class(d_model=d_model, **{**layer_options, **options})
                )
        self.norm = named_norm(d_model, eps=1e-6)
        self.layerdrop_prob = layerdrop_prob

    def forward(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode.

        Arguments
        ---------
        x, padding_mask, chunk
            See :meth:`TokenMixer.forward`; padded frames may hold NaN.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D); padded frames are finite but mean nothing.
        hidden : list of torch.Tensor
            The input and the output of every layer that ran, each (B, T, D).
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        ahead = self._looking_ahead(chunk)
        hidden, frames = [x], x.shape[1]
        if ahead is not None:
            padding_mask = window_padding(padding_mask, x, ahead)
            x = unfold(x, ahead)
        layer: Any
        for layer in self.layers:
            if self.training and self.layerdrop_prob > 0.0:
                if torch.rand(()) < self.layerdrop_prob:
                    continue
            if ahead is None:
                x = layer(x, padding_mask, chunk)
                hidden.append(x)
            else:
                x, _ = layer.look_ahead(x, padding_mask, ahead)
                hidden.append(own_frames(x, ahead, frames))
        return self.norm(hidden[-1]), hidden

    def _looking_ahead(self, chunk):
        """The rule, if it has right frames, which the layers then must know."""
        if chunk is None or chunk.right_frames == 0:
            return None
        for layer in self.layers:
            if not hasattr(layer, "look_ahead"):
                raise ValueError(f"{type(layer).__name__} cannot look ahead: {chunk}")
        return chunk

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: ChunkRule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any frame; see ``TokenMixer.init_state``.

        Returns
        -------
        dict of str to torch.Tensor
            Of every layer, named ``layers.0.mixer.frames_seen`` and so on.

        Raises
        ------
        ValueError
            If the layers, or their mixer as configured, cannot stream.
        """
        state = {}
        layer: Any
        for index, layer in enumerate(self.layers):
            if not hasattr(layer, "init_state"):
                raise ValueError(f"{type(layer).__name__} cannot stream")
            state.update(
                prefixed(
                    f"layers.{index}",
                    layer.init_state(
                        batch_size, chunk=chunk, device=device, dtype=dtype
                    ),
                )
            )
        return state

    def step(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor | None,
        chunk: ChunkRule | None,
        state: State,
    ) -> tuple[torch.Tensor, State]:
        """Encode the next frames of each stream; see :meth:`TokenMixer.forward`.

        A step takes whole chunks of each stream, but for its last. Without a rule, the
        layers must be causal. Under a rule with right frames it takes one chunk and its
        look-ahead, of which only a stream's end may lack frames, and returns the chunk.
        """
        ahead, frames = self._looking_ahead(chunk), x.shape[1]
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        if ahead is not None:
            x = x.unsqueeze(1)
            padding_mask = None if padding_mask is None else padding_mask.unsqueeze(1)
        new_state: State = {}
        layer: Any
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}"
            step = layer.step if ahead is None else layer.look_ahead
            x, layer_state = step(x, padding_mask, chunk, within(name, state))
            new_state.update(prefixed(name, layer_state))
        if ahead is not None:
            x = own_frames(x, ahead, min(frames, ahead.chunk_frames))
        return self.norm(x), new_state


def build_encoder_mixer(
    mixer, *, d_model, num_heads, d_ffn, dropout, causal, options=None
):
    """Build a layer's mixer from the layer's own settings and the user's options.

    The layer offers ``hypernet_size`` (= d_ffn), ``dropout`` and ``causal``; a
    mixer takes those that it knows, and the user's options come on top.

    Arguments
    ---------
    mixer : str or type
        Name of a registered mixer, or a TokenMixer class.
    d_model : int
        Width of the frames.
    num_heads : int
        Number of heads.
    d_ffn : int
        Width of the layer's feed-forward part.
    dropout : float
        The layer's dropout rate.
    causal : bool
        Whether a frame may see nothing after itself.
    options : dict, optional
        The user's options, each of which the mixer must know.

    Returns
    -------
    hyperconformer.mixers.base.TokenMixer

    Raises
    ------
    ValueError
        If a name is unknown or a value of another type, or the layer is causal and
        the mixer is not.
    """
    options = {} if options is None else options
    check_options(mixer, options)
    offered = {"hypernet_size": d_ffn, "dropout": dropout, "causal": causal}
    known = mixer_options(mixer)
    accepted = {name: value for name, value in offered.items() if name in known}
    built = build_mixer(
        mixer, d_model=d_model, num_heads=num_heads, **{**accepted, **options}
    )
    if causal and not built.causal:
        raise ValueError(
            f"causal=True, but {mixer_class(mixer).__name__} sees the whole "
            "utterance; choose a mixer that can be causal, or causal=False"
        )
    return built
