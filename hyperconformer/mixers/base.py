"""The token mixer: what stands in a Conformer layer where self-attention stood."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hyperconformer.core.masks import ChunkRule, check_padding_mask
from hyperconformer.core.recording import is_recorded
from hyperconformer.core.state import State


class TokenMixer(nn.Module):
    """Base class of every mixer: (B, T, D) in, (B, T, D) out.

    A subclass says by attributes and methods what it can do, and calls
    :meth:`check_inputs` first thing in ``forward``. What it cannot honour
    (a chunk rule, a state, causality) is refused with an error, never ignored.
    Attributes that depend on options are set in the constructor; they are read of
    the built mixer. The contract tests and the documentation's table read them too.

    A dataclass ``Options`` in a subclass declares the mixer's options, a field each
    with its type, default and documentation. A constructor that takes them as
    ``**given`` and makes ``self.Options(**given)`` of them shows their names, and the
    registry checks their types.

    Attributes
    ----------
    causal : bool
        Whether a frame sees nothing after itself.
    chunkable : bool
        Whether ``forward`` honours a ``chunk`` rule.
    streamable : bool
        Whether ``forward`` honours a ``state``, and :meth:`init_state` makes one;
        :meth:`unsupported_reason` says under which rules.
    needs_position : bool
        Whether the mixer is blind to order, so that the encoder must add
        absolute position codes to its input.
    quadratic : bool
        Whether time or memory grows with the square of the number of frames.
    dtypes : tuple of torch.dtype
        What the module may be cast to.
    cross : str
        The class that mixes queries with keys and values of another length, or "".
    paper : str
        Where the mixer was published.
    cost : str
        Cost in the number of frames T, as it stands in the documentation table.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    """

    causal: bool = False
    chunkable: bool = False
    streamable: bool = False
    needs_position: bool = False
    quadratic: bool = False
    dtypes: tuple[torch.dtype, ...] = (
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    )
    cross: str = ""
    paper: str = ""
    cost: str = ""

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = d_model

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if "why_not_stream" in vars(cls):  # Its answer would be ignored.
            raise ValueError(
                f"{cls.__name__}: why_not_stream is called unsupported_reason now"
            )
        if "__init__" in vars(cls) and hasattr(cls, "Options"):
            _show_options(cls.__init__, cls.Options)

    def forward(
        self,
        x: torch.Tensor,
        *,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State | None]:
        """Mix information across frames.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) frames; what stands in padded frames is never read.
        padding_mask : torch.Tensor, optional
            (B, T) bool, True = padding. With a state it follows the real frames
            of each stream and is no time: a stream goes on where its real frames
            ended, and one without real frames keeps its state.
        chunk : hyperconformer.core.masks.ChunkRule, optional
            How far each frame may see; None = as far as the mixer goes. A rule with
            right frames comes from :meth:`look_ahead`, with a state: then all frames
            of the call see each other, as a chunk's do, and the state is not used.
        state : dict of str to torch.Tensor, optional
            What :meth:`init_state` or the previous call returned. It is not
            changed; the new state is returned. A causal mixer takes any number
            of frames a step. Where frames see their whole chunk, a step takes any
            number of whole chunks of each stream, always under the same rule; a
            part of a chunk ends the stream.

        Returns
        -------
        y : torch.Tensor
            (B, T, D) mixed frames, finite in padded frames too.
        state : dict of str to torch.Tensor or None
            The state after these frames; None where no state was given.
        """
        raise NotImplementedError

    def look_ahead(
        self,
        x: torch.Tensor,
        *,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule,
        state: State | None = None,
    ) -> tuple[torch.Tensor, State]:
        """Mix chunks with their look-ahead, under a rule with right frames.

        Chunk n is mixed with the right frames that follow it, from the state after the
        chunks before it. This state comes from the chunks' own frames alone.

        Arguments
        ---------
        x : torch.Tensor
            (B, N, W, D) windows of N chunks, see
            :func:`hyperconformer.core.windows.unfold`.
        padding_mask : torch.Tensor, optional
            (B, N, W) bool, True = padding, which follows the real frames.
        chunk : hyperconformer.core.masks.ChunkRule
            The rule.
        state : dict of str to torch.Tensor, optional
            As for :meth:`forward`; None = before the first frame.

        Returns
        -------
        y : torch.Tensor
            (B, N, W, D) mixed windows.
        state : dict of str to torch.Tensor
            The state after the N chunks, without their look-ahead.

        Raises
        ------
        ValueError
            If the mixer, as configured, cannot stream.
        """
        own = replace(chunk, right_frames=0)
        if state is None:
            state = self.init_state(
                x.shape[0], chunk=own, device=x.device, dtype=x.dtype
            )
        before = []
        for index in range(x.shape[1]):
            before.append(state)
            mask = None
            if padding_mask is not None:
                mask = padding_mask[:, index, : chunk.chunk_frames]
            frames = x[:, index, : chunk.chunk_frames]
            _, after = self(frames, padding_mask=mask, chunk=own, state=state)
            assert after is not None  # A state was given.
            state = after
        # Every window is a stream of its own that stands before its chunk.
        states = {
            name: torch.stack([each[name] for each in before], dim=1).flatten(0, 1)
            for name in state
        }
        y, _ = self(
            x.flatten(0, 1),
            padding_mask=None if padding_mask is None else padding_mask.flatten(0, 1),
            chunk=chunk,
            state=states,
        )
        return y.unflatten(0, x.shape[:2]), state

    def init_state(
        self,
        batch_size: int,
        *,
        chunk: ChunkRule | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before the first frame of ``batch_size`` streams.

        Arguments
        ---------
        batch_size : int
            Number of streams.
        chunk : hyperconformer.core.masks.ChunkRule, optional
            The rule that the streams will follow, where memory depends on it.
        device : torch.device, optional
            Where the tensors live.
        dtype : torch.dtype, optional
            Their floating type.

        Returns
        -------
        dict of str to torch.Tensor
            Batch-first tensors, whose shapes no step changes.

        Raises
        ------
        ValueError
            If this mixer, as configured, cannot stream.
        """
        raise ValueError(
            self.unsupported_reason(chunk)
            or f"{type(self).__name__} is streamable, but does not say how"
        )

    def unsupported_reason(self, chunk: ChunkRule | None = None) -> str | None:
        """Why this mixer, as configured, cannot stream under a rule.

        Arguments
        ---------
        chunk : hyperconformer.core.masks.ChunkRule, optional
            The streams' rule.

        Returns
        -------
        str or None
            The reason, or None if it can. Unless a subclass knows better, a streamable
            mixer streams without a rule, and a chunkable one under every rule.
        """
        name = type(self).__name__
        if not self.streamable:
            return f"{name} as configured cannot stream: it keeps no state"
        if chunk is not None and not self.chunkable:
            return f"{name} as configured cannot stream under a chunk rule: {chunk}"
        return None

    def step_unit(self, chunk: ChunkRule | None = None) -> int:
        """Frames of which a step brings a multiple, but for a stream's last.

        Arguments
        ---------
        chunk : hyperconformer.core.masks.ChunkRule, optional
            The streams' rule, which :meth:`unsupported_reason` allows.

        Returns
        -------
        int
            1 where steps may bring any number of frames. Unless a subclass knows
            better, they bring whole chunks.
        """
        return 1 if chunk is None else chunk.chunk_frames

    def check_inputs(
        self,
        x: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        chunk: ChunkRule | None = None,
        state: State | None = None,
    ) -> None:
        """Refuse what this mixer cannot honour, saying what was got and expected.

        Raises
        ------
        ValueError
            On a wrong shape or dtype, an empty sequence, or a ``chunk`` or
            ``state`` that this mixer does not support.
        """
        name = type(self).__name__
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(
                f"{name} expects (B, T, {self.d_model}), got {tuple(x.shape)}"
            )
        if x.shape[1] == 0:
            raise ValueError(f"{name} needs at least one frame, got T = 0")
        if padding_mask is not None:
            check_padding_mask(padding_mask, x)
        reason = None if state is None else self.unsupported_reason(chunk)
        if reason:
            raise ValueError(reason)
        if chunk is not None and not self.chunkable:
            raise ValueError(
                f"{name} as configured cannot honour a chunk rule: {chunk}"
            )
        if chunk is not None and state is None:
            chunk.check_no_look_ahead()
        elif chunk is not None:
            chunk.check_window(x.shape[1])


def _show_options(constructor, options):
    """Give a constructor the options' names in place of its ``**given``."""
    signature = inspect.signature(constructor)
    own = [x for x in signature.parameters.values() if x.kind is not x.VAR_KEYWORD]
    if len(own) == len(signature.parameters):
        return
    fields = inspect.signature(options).parameters.values()
    constructor.__signature__ = signature.replace(parameters=[*own, *fields])
    constructor.__annotations__ = {x.name: x.annotation for x in [*own[1:], *fields]}


def frames_of_step(x, padding_mask, frames_seen, chunk=None):
    """Count the real frames that a step brings to each stream.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, D) the step's frames.
    padding_mask : torch.Tensor, optional
        (B, T) bool, True = padding, after the real frames.
    frames_seen : torch.Tensor
        (B,) int64 real frames of each stream before this step.
    chunk : hyperconformer.core.masks.ChunkRule, optional
        The rule, for a mixer whose frames see their whole chunk.

    Returns
    -------
    torch.Tensor
        (B,) int64.

    Raises
    ------
    ValueError
        If the batch is not that of the state, padding stands before real frames, or
        a chunk is split over steps (data are not looked at while operations are
        recorded, see :func:`hyperconformer.core.recording.is_recorded`).
    """
    if frames_seen.shape[0] != x.shape[0]:
        raise ValueError(
            f"a state of {len(frames_seen)} streams does not fit a batch of {len(x)}"
        )
    if padding_mask is None:
        new = torch.full_like(frames_seen, x.shape[1])
    else:
        check_right_padding(padding_mask)
        new = (~padding_mask).sum(1)
    if chunk is not None and not is_recorded():
        split = (new > 0) & (frames_seen % chunk.chunk_frames > 0)
        if split.any():
            raise ValueError(
                f"a chunk must not be split over steps: streams "
                f"{split.nonzero().flatten().tolist()} of the batch ended with a part "
                f"of a chunk of {chunk.chunk_frames} frames, but got more"
            )
    return new


def check_right_padding(padding_mask):
    """Refuse real frames after padding (data are not looked at while recording).

    Arguments
    ---------
    padding_mask : torch.Tensor
        (B, T) bool, True = padding.

    Raises
    ------
    ValueError
        If a real frame follows a padded one.
    """
    if is_recorded():
        return
    if (padding_mask[:, :-1] & ~padding_mask[:, 1:]).any():
        raise ValueError("padding must follow the real frames of each utterance")
