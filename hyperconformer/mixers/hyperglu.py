"""HyperGLU and HyperMLP: attention whose rows of scores are a small dynamic MLP.

:class:`HyperGLU` is the published layer with its configuration and parameter
names; :class:`HyperGLUMixer` and :class:`HyperMLPMixer` are the token mixers
"hyperglu" and "hypermlp" made of it.

Paper: HyperMLP: An Integrated Perspective for Sequence Modeling, arXiv:2602.12601.
"""

from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hyperconformer.core.masks import last_frames
from hyperconformer.core.recording import kept
from hyperconformer.mixers.base import (
    State,
    TokenMixer,
    check_right_padding,
    frames_of_step,
)
from hyperconformer.nn.linear import Linear
from hyperconformer.ops.backend import check_backend
from hyperconformer.ops.hyperglu import LowRankMix, hyperglu

_CHOICES = {
    "attn_kind": ("glu", "relu"),
    "attn_norm": ("out_scale", "l2", "none"),
    "aligner_kind": ("offset", "identity"),
    "gate_act": ("sigmoid", "none"),
    "impl_default": ("dense", "chunked"),
}
_AT_LEAST_ONE = (
    "n_embd",
    "n_head",
    "block_size",
    "conv_kernel_size",
    "op1_rank",
    "op2_rank",
    "chunk_T",
)


@dataclass(kw_only=True)
class HyperGLUOptions:
    """The options that the published layer and the token mixer share."""

    block_size: int = 2048
    """L: how many lags a frame sees in causal offset layout, its own included; longer
    inputs slide. In the length-dependent settings, identity layout among them: the
    greatest number of frames; longer inputs are refused."""

    aligner_kind: str = "offset"
    """"offset": parameters belong to lags (shift invariant); "identity": to positions
    counted from the end of the sequence, so outputs depend on T."""

    attn_norm: str = "out_scale"
    """"out_scale" or "l2": divide by the norm of a row of scores, on the output or
    before the rectifier; "none": do not."""

    qk_rank: int | None = None
    """Width of queries and keys over all heads, a multiple of the score sets (2H; H
    for HyperMLP; twice that with rotary). None = D // 4, in the mixer the nearest
    multiple of them, at least one."""

    vo_rank: int | None = None
    """Width of the values over all heads, a multiple of H; None = D."""

    bias: bool = False
    """Whether the projections q, k, v and c_proj have biases."""

    use_kv_conv: bool = True
    """Whether keys and values are made of causally convolved frames."""

    conv_kernel_size: int = 4
    """Taps of that depthwise convolution."""

    use_rope: bool = False
    """Whether queries and keys are rotated by their positions. The published code is
    no rotation; here scores depend on i - j only."""

    rope_base: float = 10000.0
    """Base of the rotation's frequencies."""

    gate_act: str = "sigmoid"
    """"sigmoid" or "none": what gates and controls go through."""

    use_qk_gate: bool = True
    """Whether queries are gated."""

    use_vo_gate: bool = True
    """Whether outputs are gated."""

    use_op1: bool = True
    """Whether scores are mixed along their row before the nonlinearity."""

    op1_rank: int = 16
    """Rank of that mixing."""

    op1_per_head: bool = True
    """Whether each head has its own mixing; False = the heads share U, Vt and d, and
    each controls them for itself."""

    op1_use_diag: bool = True
    """Whether the mixing has a diagonal term."""

    op1_shortcut: bool = True
    """Whether the mixing adds its input."""

    use_op2: bool = True
    """Whether scores are mixed along their row after the nonlinearity; the other
    ``op2`` options are as those of ``op1``."""

    op2_rank: int = 16
    op2_per_head: bool = True
    op2_use_diag: bool = True
    op2_shortcut: bool = True

    norm_eps: float = 1e-12
    """The least norm that is divided by."""

    backend: str | None = None
    """Force a path of :func:`hyperconformer.ops.hyperglu.hyperglu`."""


@dataclass
class HyperGLUConfig(HyperGLUOptions):
    """The options of :class:`HyperGLU`.

    Raises
    ------
    ValueError
        If a value is unknown or out of range, widths do not divide, or an
        unmasked mixing would leak the future.

    Example
    -------
    >>> HyperGLUConfig(n_embd=32, n_head=2).qk_rank
    8
    """

    n_embd: int
    """Width D of the frames."""

    n_head: int
    """Heads H."""

    _: KW_ONLY

    attn_kind: str = "glu"
    """"glu": softplus(x2) * relu(x1) of two score sets (HyperGLU); "relu": relu of one
    (HyperMLP)."""

    do_masking: bool = True
    """Whether the layer is causal."""

    op1_do_masking: bool = True
    """Whether the mixing keeps slots without a visible key at 0. The published code
    also takes False where do_masking is True; here that is refused of a mixing in use:
    it writes to slots of the future, so that a frame's output depends on the length of
    the sequence, and dense and chunked differ."""

    op2_do_masking: bool = True
    """As ``op1_do_masking``."""

    impl_default: str = "chunked"
    """"chunked": a chunk of queries at a time, memory O(T); "dense": all scores at
    once. The length-dependent settings are dense either way."""

    chunk_T: int = 1024
    """Queries in a chunk."""

    def __post_init__(self):
        check_backend(self.backend)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {known}, got {getattr(self, name)!r}"
                )
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("norm_eps", "rope_base"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.qk_rank is None:
            self.qk_rank = self.n_embd // 4
        if self.vo_rank is None:
            self.vo_rank = self.n_embd
        self._check_widths()
        for op in ("op1", "op2"):
            in_use = self.do_masking and getattr(self, f"use_{op}")
            if in_use and not getattr(self, f"{op}_do_masking"):
                raise ValueError(
                    f"{op}_do_masking=False would leak the future of a causal layer "
                    f"(the published code takes it all the same): "
                    f"set {op}_do_masking=True, or do_masking=False"
                )

    def _check_widths(self):
        score_sets = self.score_sets
        if self.qk_rank < 1 or self.qk_rank % score_sets:
            raise ValueError(
                f"qk_rank must be a positive multiple of {score_sets} "
                f"(attn_kind {self.attn_kind!r}, {self.n_head} heads), "
                f"got {self.qk_rank}"
            )
        if self.vo_rank < 1 or self.vo_rank % self.n_head:
            raise ValueError(
                f"vo_rank must be a positive multiple of n_head = {self.n_head}, "
                f"got {self.vo_rank}"
            )
        if self.use_rope and self.qk_rank // score_sets % 2:
            raise ValueError(
                f"use_rope rotates pairs: qk_rank must be a multiple of "
                f"{2 * score_sets}, got {self.qk_rank}"
            )

    @property
    def score_sets(self) -> int:
        """Score sets Hq: 2H for "glu", H for "relu"."""
        return self.n_head * (2 if self.attn_kind == "glu" else 1)

    @property
    def shift_invariant(self) -> bool:
        """Whether parameters belong to lags alone: any length, and streaming."""
        return self.do_masking and self.aligner_kind == "offset"


class HyperGLU(nn.Module):
    """The published HyperGLU / HyperMLP layer, under its own parameter names.

    Arguments
    ---------
    cfg : HyperGLUConfig
        Every option.

    Example
    -------
    >>> layer = HyperGLU(HyperGLUConfig(n_embd=32, n_head=2, block_size=16))
    >>> layer(torch.randn(3, 50, 32)).shape
    torch.Size([3, 50, 32])
    """

    def __init__(self, cfg: HyperGLUConfig):
        super().__init__()
        self.cfg = cfg
        width, score_sets = cfg.n_embd, cfg.score_sets
        assert cfg.qk_rank is not None and cfg.vo_rank is not None
        self.q = Linear(width, cfg.qk_rank, bias=cfg.bias)
        self.k = Linear(width, cfg.qk_rank, bias=cfg.bias)
        self.v = Linear(width, cfg.vo_rank, bias=cfg.bias)
        self.c_proj = Linear(cfg.vo_rank, width, bias=cfg.bias)
        if cfg.use_kv_conv:
            self.conv1 = _CausalConv(width, cfg.conv_kernel_size)
            self.conv2 = _CausalConv(width, cfg.conv_kernel_size)
        if cfg.use_qk_gate:
            self.left_gate = Linear(width, cfg.qk_rank)
        if cfg.use_vo_gate:
            self.right_gate = Linear(width, cfg.vo_rank)
        if cfg.use_op1:
            self.op = _RowMix(
                score_sets if cfg.op1_per_head else 1,
                cfg.block_size,
                cfg.op1_rank,
                cfg.op1_use_diag,
                cfg.op1_shortcut,
            )
            self.control1 = Linear(width, score_sets * cfg.op1_rank)
        if cfg.use_op2:
            self.op2 = _RowMix(
                cfg.n_head if cfg.op2_per_head else 1,
                cfg.block_size,
                cfg.op2_rank,
                cfg.op2_use_diag,
                cfg.op2_shortcut,
            )
            self.control2 = Linear(width, cfg.n_head * cfg.op2_rank)

    @property
    def reach(self) -> int:
        """How many earlier frames an output reads (causal offset layout)."""
        taps = self.cfg.conv_kernel_size if self.cfg.use_kv_conv else 1
        return self.cfg.block_size - 1 + taps - 1

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        impl: str | None = None,
        chunk_T: int | None = None,
    ) -> torch.Tensor:
        """Mix frames.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) float.
        attention_mask : torch.Tensor, optional
            (B, T), nonzero or True = keep (the published sense). Keys and values
            of other frames are 0; the convolution still reads the frames.
        impl : str, optional
            "dense" or "chunked"; None = cfg.impl_default.
        chunk_T : int, optional
            Queries in a chunk; None = cfg.chunk_T.

        Returns
        -------
        torch.Tensor
            (B, T, D) float.

        Raises
        ------
        ValueError
            If impl is unknown, or T > block_size in a length-dependent setting.
        """
        impl = self.cfg.impl_default if impl is None else impl
        if impl not in _CHOICES["impl_default"]:
            raise ValueError(
                f"impl must be one of {_CHOICES['impl_default']}, got {impl!r}"
            )
        position = torch.zeros(1, dtype=torch.int64, device=x.device)
        k, v = self._keys_values(x, x, position)
        if attention_mask is not None:
            hidden = ~attention_mask.bool()[..., None]
            k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        chunk = self.cfg.chunk_T if chunk_T is None else chunk_T
        return self._mix(
            x, k, v, position, chunk_frames=chunk if impl == "chunked" else None
        )

    def init_state(
        self,
        batch_size: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state before any frame; see :meth:`TokenMixer.init_state`.

        Returns
        -------
        dict of str to torch.Tensor
            keys (B, L - 1, qk_rank), values (B, L - 1, vo_rank) of the last
            frames, frames_seen (B,) int64, and with a convolution
            inputs (B, K - 1, D), the last frames themselves.
        """
        cfg = self.cfg
        assert cfg.qk_rank is not None and cfg.vo_rank is not None
        past = cfg.block_size - 1
        weight = self.q.weight
        device = weight.device if device is None else device
        like: dict[str, Any] = {
            "device": device,
            "dtype": weight.dtype if dtype is None else dtype,
        }
        state = {
            "keys": torch.zeros(batch_size, past, cfg.qk_rank, **like),
            "values": torch.zeros(batch_size, past, cfg.vo_rank, **like),
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
        }
        if cfg.use_kv_conv:
            taps = cfg.conv_kernel_size - 1
            state["inputs"] = torch.zeros(batch_size, taps, cfg.n_embd, **like)
        return state

    def step(
        self, x: torch.Tensor, state: State, num_frames: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, State]:
        """Mix the next frames of streams, each at its own point in time.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D) float, any T >= 1.
        state : dict of str to torch.Tensor
            From :meth:`init_state` or the last step; not changed.
        num_frames : torch.Tensor, optional
            (B,) int64: how many of the T frames of each stream are real; the
            rest does not enter the state. None = all.

        Returns
        -------
        y : torch.Tensor
            (B, T, D) float.
        state : dict of str to torch.Tensor
            The state after the real frames.
        """
        cfg = self.cfg
        before = state["frames_seen"]
        inputs = x
        if cfg.use_kv_conv:
            inputs = torch.cat([state["inputs"].to(x.dtype), x], dim=1)
        k, v = self._keys_values(x, inputs, before)
        history = {
            "keys": torch.cat([state["keys"].to(k.dtype), k], dim=1),
            "values": torch.cat([state["values"].to(v.dtype), v], dim=1),
        }
        y = self._mix(
            x,
            history["keys"],
            history["values"],
            before,
            past_frames=before,
            chunk_frames=cfg.chunk_T,
        )
        if cfg.use_kv_conv:
            history["inputs"] = inputs
        after = {
            name: last_frames(tensor, num_frames, state[name].shape[1]).to(
                state[name].dtype
            )
            for name, tensor in history.items()
        }
        new = x.shape[1] if num_frames is None else num_frames
        return y, {**after, "frames_seen": before + new}

    def _keys_values(self, x, inputs, position):
        """k (B, T, qk_rank), rotated, and v (B, T, vo_rank).

        ``inputs`` (B, K - 1 + T, D) or (B, T, D) are what the convolution reads:
        without the K - 1 earlier frames it starts from zeros.
        """
        xk = xv = x
        if self.cfg.use_kv_conv:
            xk, xv = self.conv1(inputs, x.shape[1]), self.conv2(inputs, x.shape[1])
        k = self.k(xk)
        if self.cfg.use_rope:
            k = self._rotate(self._split(k, self.cfg.score_sets), position)
            k = k.transpose(1, 2).flatten(2)
        return k, self.v(xv)

    def _mix(self, x, k, v, position, *, past_frames=None, chunk_frames):
        """From keys and values to outputs (B, T, D)."""
        cfg = self.cfg
        q = self.q(x)
        if cfg.use_qk_gate:
            # Not in half precision: the row norm undoes the size of q, so a gate
            # that underflows would turn a frame that counts into silence.
            q = _at_least_float32(q)
            q = q * self._act(_at_least_float32(self.left_gate(x)))
        q = self._split(q, cfg.score_sets)
        if cfg.use_rope:
            # After the gate, which would undo the rotation: scores have to
            # depend on i - j only.
            q = self._rotate(q, position)
        mix1 = mix2 = None
        if cfg.use_op1:
            control = self._split(self._act(self.control1(x)), cfg.score_sets)
            mix1 = self.op(control, cfg.op1_do_masking)
        if cfg.use_op2:
            control = self._split(self._act(self.control2(x)), cfg.n_head)
            mix2 = self.op2(control, cfg.op2_do_masking)
        y = hyperglu(
            q,
            self._split(k, cfg.score_sets),
            self._split(v, cfg.n_head),
            kind=cfg.attn_kind,
            norm=cfg.attn_norm,
            mix1=mix1,
            mix2=mix2,
            block_size=cfg.block_size,
            norm_eps=cfg.norm_eps,
            causal=cfg.do_masking,
            layout=cfg.aligner_kind,
            past_frames=past_frames,
            chunk_frames=chunk_frames,
            backend=cfg.backend,
        )
        y = y.transpose(1, 2).flatten(2)
        if cfg.use_vo_gate:
            y = y * self._act(self.right_gate(x))
        return self.c_proj(y)

    def _act(self, z):
        return z.sigmoid() if self.cfg.gate_act == "sigmoid" else z

    @staticmethod
    def _split(z, heads):
        """(B, T, heads * d) to (B, heads, T, d)."""
        return z.unflatten(-1, (heads, -1)).transpose(1, 2)

    def _rotate(self, z, position):
        """Rotate (B, H, T, d), whose first frames stand at ``position`` (B or 1,).

        Channels 2p and 2p + 1 turn together by ``t * rope_base ** (-2p / d)``.
        Angles are float64: a stream may be long.
        """
        frames, width = z.shape[2:]
        t = position[:, None] + torch.arange(frames, device=z.device)
        frequencies = _rope_frequencies(width, self.cfg.rope_base).to(z.device)
        angle = t[:, None, :, None] * frequencies
        cos, sin = angle.cos().to(z.dtype), angle.sin().to(z.dtype)
        even, odd = z[..., ::2], z[..., 1::2]
        return torch.stack(
            [even * cos - odd * sin, odd * cos + even * sin], dim=-1
        ).flatten(-2)


@kept(maxsize=8)
def _rope_frequencies(width, base):
    """(width / 2,) float64 on the CPU; not to be changed in place."""
    with torch.inference_mode(False), torch.device("cpu"):
        channel = torch.arange(0, width, 2, dtype=torch.float64)
        return base ** (-channel / width)


def _at_least_float32(tensor):
    """Half precision is widened; float32 and float64 stay as they are."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


class _CausalConv(nn.Module):
    """Depthwise causal convolution without bias; the last tap is the present."""

    def __init__(self, width, taps):
        super().__init__()
        self.conv = nn.Conv1d(width, width, taps, groups=width, bias=False)

    def forward(self, inputs, frames):
        """(B, K - 1 + T, D) or (B, T, D) to (B, T, D), T = ``frames``."""
        taps = self.conv.kernel_size[0]
        missing = frames + taps - 1 - inputs.shape[1]
        if torch.is_grad_enabled() or inputs.dtype.itemsize < 4:
            padded = F.pad(inputs.transpose(1, 2), (missing, 0))
            return self.conv(padded).transpose(1, 2)
        # The step of a stream is too short for what it takes to begin a convolution.
        padded = F.pad(inputs, (0, 0, missing, 0)) if missing else inputs
        weights = self.conv.weight[:, 0].T
        y = padded[:, :frames] * weights[0]
        for tap in range(1, taps):
            y = y.addcmul_(padded[:, tap : tap + frames], weights[tap])
        return y


class _RowMix(nn.Module):
    """The parameters of a :class:`LowRankMix`, under their published names."""

    def __init__(self, heads, slots, rank, use_diag, shortcut):
        super().__init__()
        self.mix = nn.Module()
        self.mix.U = nn.Parameter(torch.randn(heads, slots, rank) * slots**-0.5)
        self.mix.Vt = nn.Parameter(torch.randn(heads, rank, slots) * 0.02)
        self.mix.d = None
        if use_diag:
            # With or without the shortcut, a row starts out nearly as it is.
            start = 0.0 if shortcut else 1.0
            self.mix.d = nn.Parameter(torch.full((heads, slots), start))
        self.shortcut = shortcut

    def forward(self, control, masked):
        """The mixing for control factors (B, H, T, r)."""
        heads = control.shape[1]
        factors = [
            p if p is None else p.expand(heads, *p.shape[1:])
            for p in (self.mix.U, self.mix.Vt, self.mix.d)
        ]
        return LowRankMix(*factors, control, self.shortcut, masked)


class HyperGLUMixer(TokenMixer):
    """HyperGLU as a token mixer: causal, with a window of ``block_size`` lags.

    The published layer is made for causal language models. Its shift-invariant
    form (offset layout) is causal by construction, and so is this mixer whatever
    ``causal`` says: ``causal=False`` only means that the future *may* be seen. To
    see it, choose one of

    - ``bidirectional=True``: a second layer mixes each utterance reversed in time,
      and the two outputs are added; padding changes nothing;
    - ``aligner_kind="identity"``: the published non-causal layer. Its parameters
      belong to positions counted from the end of the utterance, which must have
      ``block_size`` frames at most; a padded batch is mixed utterance by utterance.

    The attribute ``causal`` says what is true of the mixer as configured.

    Left padding, or padding between real frames, is refused: a frame before the
    first one is not neutral to the mixings.

    Chunk rules and streaming belong to the causal form. An output reads
    ``layer.reach`` earlier frames and no later one, so a chunk rule hides nothing
    from it if its left context holds as many; rules with less are refused.

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Heads H.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        As :class:`HyperGLUConfig`; also if ``causal=True`` meets a form that
        sees the future.

    Example
    -------
    >>> mixer = HyperGLUMixer(36, 2, block_size=8)
    >>> state = mixer.init_state(1)
    >>> y, state = mixer(torch.randn(1, 3, 36), state=state)
    >>> y.shape, state["frames_seen"].tolist()
    (torch.Size([1, 3, 36]), [3])
    """

    chunkable = True
    streamable = True
    paper = "arXiv:2602.12601"
    cost = "O(T * block_size)"
    attn_kind = "glu"

    @dataclass(kw_only=True)
    class Options(HyperGLUOptions):
        """The options of :class:`HyperGLUMixer`."""

        causal: bool = False
        """Whether the future must stay hidden."""

        bidirectional: bool = False
        """Whether a second layer runs over the reversed utterance."""

        chunk_frames: int = 64
        """Queries handled at once: memory, not meaning."""

        # Smaller than those of the published language models.
        block_size: int = 256
        op1_rank: int = 8
        op2_rank: int = 8

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        offset, bidirectional = options.aligner_kind == "offset", options.bidirectional
        if bidirectional and not offset:
            raise ValueError(
                "identity layout sees both directions already: "
                "bidirectional=True needs aligner_kind='offset'"
            )
        self.causal = offset and not bidirectional
        if options.causal and not self.causal:
            raise ValueError(
                f"causal=True contradicts bidirectional={bidirectional}, "
                f"aligner_kind={options.aligner_kind!r}: these see the future"
            )
        self.chunkable = self.streamable = self.causal
        self.quadratic = not offset
        shared = {
            field.name: getattr(options, field.name)
            for field in fields(HyperGLUOptions)
        }
        if options.qk_rank is None:
            score_sets = num_heads * (2 if self.attn_kind == "glu" else 1)
            unit = score_sets * (1 + options.use_rope)
            shared["qk_rank"] = _nearest_multiple(d_model / 4, unit)
        cfg = HyperGLUConfig(
            n_embd=d_model,
            n_head=num_heads,
            attn_kind=self.attn_kind,
            do_masking=offset,
            chunk_T=options.chunk_frames,
            **shared,
        )
        self.layer = HyperGLU(cfg)
        self.reverse_layer = HyperGLU(cfg) if bidirectional else None

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix frames; see :class:`TokenMixer` for the arguments.

        With a state, padding must be at the end too: padded frames do not enter
        the state, and the next call goes on after the last real frame.
        """
        self.check_inputs(x, padding_mask, chunk, state)
        reason = self._unsupported_rule(chunk)
        if reason:
            raise ValueError(reason)
        lengths = None
        if padding_mask is not None:
            # A frame before the first real one would not be neutral to the mixings.
            check_right_padding(padding_mask)
            lengths = (~padding_mask).sum(1)
            x = x.masked_fill(padding_mask[..., None], 0.0)
        if state is not None:
            new = frames_of_step(x, padding_mask, state["frames_seen"])
            return self.layer.step(x, state, None if padding_mask is None else new)
        if self.reverse_layer is not None:
            return self._both_directions(x, lengths), None
        if lengths is not None and not self.causal:
            return self._one_by_one(x, lengths.tolist()), None
        return self.layer(x), None

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """The state before the first frame; see :meth:`HyperGLU.init_state`."""
        if not self.streamable:
            return super().init_state(batch_size, chunk=chunk)
        return self.layer.init_state(batch_size, device=device, dtype=dtype)

    def unsupported_reason(self, chunk=None):
        """See :meth:`TokenMixer.unsupported_reason`."""
        return super().unsupported_reason(chunk) or self._unsupported_rule(chunk)

    def step_unit(self, chunk=None):
        """See :meth:`TokenMixer.step_unit`."""
        return 1

    def _unsupported_rule(self, chunk):
        """Why the layer reads more than a rule shows; None if it does not."""
        if chunk is None or chunk.left_chunks is None:
            return None
        visible = chunk.left_chunks * chunk.chunk_frames
        if visible < self.layer.reach:
            return (
                f"{type(self).__name__} reads {self.layer.reach} earlier frames "
                f"(block_size {self.layer.cfg.block_size} and its convolution), but "
                f"{chunk} shows {visible} before a chunk: give more left context or "
                f"a smaller block_size"
            )
        return None

    def _both_directions(self, x, lengths):
        """The sum of the layer on x and of its twin on each utterance reversed."""
        frames = torch.arange(x.shape[1], device=x.device)
        if lengths is None:
            mirror = frames.flip(0).expand(x.shape[:2])
        else:
            mirror = lengths[:, None] - 1 - frames
            mirror = torch.where(mirror >= 0, mirror, frames)
        mirror = mirror[..., None].expand_as(x)
        reverse = self.reverse_layer(x.gather(1, mirror)).gather(1, mirror)
        return self.layer(x) + reverse

    def _one_by_one(self, x, lengths):
        """Each utterance at its own length; 0 in padded frames."""
        outputs = []
        for frames, length in zip(x, lengths):
            y = self.layer(frames[None, :length]) if length else frames[None, :0]
            outputs.append(F.pad(y, (0, 0, 0, x.shape[1] - length)))
        return torch.cat(outputs)


class HyperMLPMixer(HyperGLUMixer):
    """HyperMLP as a token mixer: :class:`HyperGLUMixer` with a plain rectifier.

    Arguments
    ---------
    As :class:`HyperGLUMixer`.

    Example
    -------
    >>> mixer = HyperMLPMixer(36, 2, block_size=8)
    >>> mixer(torch.randn(1, 30, 36))[0].shape
    torch.Size([1, 30, 36])
    """

    attn_kind = "relu"


def _nearest_multiple(value, unit):
    """The positive multiple of ``unit`` nearest to ``value`` (half rounds up)."""
    return max(1, int(value / unit + 0.5)) * unit
