"""What every encoder shares: the stack of layers, the feed-forward, the mixer's place.

The parameters bear SpeechBrain's names, so that its checkpoints load here.
"""

from collections import OrderedDict
from typing import Any, Iterable, List, Optional, Tuple

import torch
from torch import nn

from hyperconformer.dropout import Dropout
from hyperconformer.linear import Linear
from hyperconformer.masks import ChunkRule
from hyperconformer.mixers.base import State
from hyperconformer.registry import (
    build_mixer,
    check_options,
    mixer_class,
    mixer_options,
)


class EncoderStack(nn.Module):
    """Layers one after another, and a final LayerNorm.

    Arguments
    ---------
    layers : iterable of torch.nn.Module
        Each maps ``(x, padding_mask, chunk)`` to frames like ``x``.
    d_model : int
        Width D of the frames.
    layerdrop_prob : float
        Probability of leaving out each layer in training.
    """

    def __init__(
        self, layers: Iterable[nn.Module], d_model: int, layerdrop_prob: float = 0.0
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = named_norm(d_model, eps=1e-6)
        self.layerdrop_prob = layerdrop_prob

    def forward(
        self,
        x: torch.Tensor,
        padding_mask: Optional[torch.Tensor] = None,
        chunk: Optional[ChunkRule] = None,
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """Encode.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames; padded frames may hold anything, NaN included.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding.
        chunk : hyperconformer.masks.ChunkRule, optional
            How far each frame may see.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D); padded frames are finite but mean nothing.
        hidden : list of torch.Tensor
            The input and the output of every layer that ran, each (B, T, D).
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        hidden = [x]
        for layer in self.layers:
            if self.training and self.layerdrop_prob > 0.0:
                if torch.rand(()) < self.layerdrop_prob:
                    continue
            x = layer(x, padding_mask, chunk)
            hidden.append(x)
        return self.norm(x), hidden

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: Optional[ChunkRule] = None,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> State:
        """The state before the first frame of ``batch_size`` streams.

        Arguments
        ---------
        batch_size : int
            Number of streams.
        chunk : hyperconformer.masks.ChunkRule, optional
            The rule that the streams will follow.
        device : torch.device, optional
            Where the tensors live.
        dtype : torch.dtype, optional
            Their floating type.

        Returns
        -------
        dict of str to torch.Tensor
            Batch-first tensors of every layer, named ``layers.0.mixer.frames_seen``
            and so on, whose shapes no step changes.

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
        padding_mask: Optional[torch.Tensor],
        chunk: Optional[ChunkRule],
        state: State,
    ) -> Tuple[torch.Tensor, State]:
        """Encode the next frames of each stream.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames: whole chunks of each stream, but for its last step.
        padding_mask : torch.Tensor or None
            (B, T) bool, True = padding, after the real frames.
        chunk : hyperconformer.masks.ChunkRule or None
            The streams' rule; None needs causal layers.
        state : dict of str to torch.Tensor
            From :meth:`init_state` or the last step; not changed.

        Returns
        -------
        encoded : torch.Tensor
            (B, T, D).
        state : dict of str to torch.Tensor
            The state after these frames.
        """
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        new_state: State = {}
        layer: Any
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}"
            x, layer_state = layer.step(x, padding_mask, chunk, within(name, state))
            new_state.update(prefixed(name, layer_state))
        return self.norm(x), new_state


def prefixed(name, state):
    """A part's state under the names that it has in the whole.

    >>> prefixed("mixer", {"sums": 1})
    {'mixer.sums': 1}
    """
    return {f"{name}.{key}": value for key, value in state.items()}


def within(name, state):
    """A part's state out of the whole; None of None. Undoes :func:`prefixed`.

    >>> within("mixer", {"mixer.sums": 1, "past": 2})
    {'sums': 1}
    """
    if state is None:
        return None
    start = len(name) + 1
    return {
        key[start:]: value for key, value in state.items() if key[:start] == f"{name}."
    }


class FeedForward(nn.Module):
    """Position-wise feed-forward: Linear, activation, dropout, Linear.

    Arguments
    ---------
    d_model : int
        Width of the frames.
    d_ffn : int
        Width of the hidden layer.
    activation : type
        Activation class.
    dropout : float
        Dropout rate of the hidden layer.
    """

    def __init__(self, d_model, d_ffn, activation=nn.SiLU, dropout=0.0):
        super().__init__()
        self.ffn = nn.Sequential(
            Linear(d_model, d_ffn),
            activation(),
            Dropout(dropout),
            Linear(d_ffn, d_model),
        )

    def forward(self, x):
        """(B, T, D) in, (B, T, D) out."""
        widen, activation, dropout, narrow = self.ffn
        if type(dropout) is not Dropout:  # Somebody has replaced it.
            return self.ffn(x)
        return narrow(dropout.after(activation, widen(x)))


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


def named_norm(d_model, eps=1e-5):
    """A LayerNorm whose parameters are called ``norm.*``, as SpeechBrain's are."""
    return nn.Sequential(OrderedDict(norm=nn.LayerNorm(d_model, eps=eps)))
