"""HyperMixing, the token mixer of HyperMixer and HyperConformer.

HyperMixer: An MLP-based Low Cost Alternative to Transformers,
https://arxiv.org/abs/2203.03691; HyperConformer: Multi-head HyperMixer for Efficient
Speech Recognition, https://arxiv.org/abs/2305.18281.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hyperconformer.core.masks import check_padding_mask
from hyperconformer.core.messages import quoted
from hyperconformer.core.recording import is_exported, kept
from hyperconformer.mixers.base import TokenMixer, frames_of_step
from hyperconformer.ops.backend import check_backend
from hyperconformer.ops.hypermixing import (
    Hypernet,
    chunked,
    hypermixing,
    hypermixing_in_chunks,
)
from hyperconformer.ops.local_attention import rotate_half

# What the hypernetworks may know of time.
POSITIONS = ("absolute", "rotary", "none")


class HyperMixing(nn.Module):
    """Multi-head HyperMixing between two sequences, or within one.

    Every key writes a row of a (N, k) matrix W1, every query a row of a (M, k) matrix
    W2, and an MLP over time of these weights mixes the values:
    ``LayerNorm(W2 GELU(W1' values))``, head by head (HyperMixer, section 3).

    Arguments
    ---------
    input_output_dim : int
        Width D of queries, keys, values and output.
    hypernet_size : int
        Hidden width of the mixing MLP, all heads together.
    tied : bool
        Whether W2 = W1. Then keys and queries must have one length; W is made from
        the keys.
    num_heads : int
        Heads H; it divides ``input_output_dim`` and ``hypernet_size``.
    fix_tm_hidden_size : bool
        Whether each head has the hidden width ``hypernet_size``, instead of a share.
    max_length : int
        Position codes made in advance; longer inputs make more when they come.
    token_information : callable, optional
        From (B, T, D) tokens to (B, T, D) what the hypernetworks read; None adds
        position codes to tokens scaled by sqrt(D). An ``nn.Module`` becomes a part.
    hypernetwork_bias : bool
        Whether the hypernetworks have biases.
    use_layer_norm : bool
        Whether the output is normalised.
    backend : str, optional
        Force a path of :func:`hyperconformer.ops.hypermixing.hypermixing`.

    Raises
    ------
    ValueError
        If a size is not divisible or the backend is unknown.

    Example
    -------
    >>> mixing = HyperMixing(input_output_dim=16, hypernet_size=32, num_heads=2)
    >>> queries, keys = torch.randn(4, 9, 16), torch.randn(4, 5, 16)
    >>> mixing(queries, keys, keys).shape
    torch.Size([4, 9, 16])
    """

    def __init__(
        self,
        input_output_dim: int,
        hypernet_size: int,
        tied: bool = False,
        num_heads: int = 1,
        fix_tm_hidden_size: bool = False,
        max_length: int = 3000,
        token_information: nn.Module | None = None,
        hypernetwork_bias: bool = False,
        use_layer_norm: bool = True,
        backend: str | None = None,
    ):
        super().__init__()
        self.input_output_dim = input_output_dim
        self.tied = tied
        self.backend = check_backend(backend)
        self.hyper = HyperNetwork(
            input_output_dim,
            hypernet_size,
            num_heads=num_heads,
            tied=tied,
            fix_tm_hidden_size=fix_tm_hidden_size,
            bias=hypernetwork_bias,
        )
        self.layer_norm = nn.LayerNorm(input_output_dim) if use_layer_norm else None
        if token_information is None:
            token_information = PositionCodes(input_output_dim, max_length, steep_codes)
        self.token_information = token_information

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        query_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix the values into one output for every query.

        Arguments
        ---------
        queries : torch.Tensor
            (B, M, D).
        keys : torch.Tensor
            (B, N, D).
        values : torch.Tensor
            (B, N, D).
        key_padding_mask : torch.Tensor, optional
            (B, N) bool, True = padding.
        query_padding_mask : torch.Tensor, optional
            (B, M) bool, True = padding.

        Returns
        -------
        torch.Tensor
            (B, M, D) in the dtype of ``values``; where queries are padding, the bias
            of the LayerNorm, or 0 without it.

        Raises
        ------
        ValueError
            If shapes or masks do not fit, or with tied weights the lengths differ.
        """
        self._check_tokens(queries, keys, values)
        if key_padding_mask is not None:
            check_padding_mask(key_padding_mask, keys)
        if query_padding_mask is not None:
            check_padding_mask(query_padding_mask, queries)
        # One tensor for both hypernetworks takes the operator's shortest path.
        if self.tied:
            keys = queries = _fill_padding(keys, key_padding_mask)
        same = queries is keys and query_padding_mask is key_padding_mask
        codes, scale = None, 1.0
        if isinstance(self.token_information, PositionCodes):
            codes = self.token_information(max(keys.shape[1], queries.shape[1]))
            scale = math.sqrt(self.input_output_dim)
        else:
            keys = self.token_information(_fill_padding(keys, key_padding_mask))
            queries = _fill_padding(queries, query_padding_mask)
            queries = keys if same else self.token_information(queries)
        out = hypermixing(
            values,
            keys,
            queries,
            self.hyper.w1_gen.weights(),
            self.hyper.w2_gen.weights(),
            codes=codes,
            scale=scale,
            key_padding_mask=key_padding_mask,
            query_padding_mask=query_padding_mask,
            backend=self.backend,
        )
        if self.layer_norm is not None:
            out = _normalise(out, self.layer_norm)
        return out.to(values.dtype)

    def _check_tokens(self, queries, keys, values):
        """Refuse tokens that do not fit."""
        for name, tokens in (("queries", queries), ("keys", keys), ("values", values)):
            if tokens.dim() != 3 or tokens.shape[-1] != self.input_output_dim:
                raise ValueError(
                    f"HyperMixing expects {name} of shape "
                    f"(B, T, {self.input_output_dim}), got {tuple(tokens.shape)}"
                )
        if self.tied and queries.shape != keys.shape:
            raise ValueError(
                "tied weights need queries and keys of one length, "
                f"got {queries.shape[1]} and {keys.shape[1]}"
            )


class MultiHeadHyperMixing(TokenMixer):
    """HyperMixing within one sequence, as a Conformer layer holds it.

    SpeechBrain's form of :class:`HyperMixing`: the hypernetworks always have biases,
    the output is always normalised, position codes are added to unscaled frames.
    State dicts of ``speechbrain.nnet.hypermixing.HyperMixing`` load strictly.

    Under a chunk rule W1 and the values reach only as far as the rule: their sums are
    taken chunk by chunk, and a stream remembers them (:mod:`.ops.hypermixing.chunked`).

    Arguments
    ---------
    d_model : int
        Width D of the frames.
    num_heads : int
        Heads H; it divides ``d_model`` and ``hypernet_size``.
    **given
        :class:`Options`.

    Raises
    ------
    ValueError
        If a size is not divisible or the backend is unknown.

    Example
    -------
    >>> from hyperconformer.core.masks import ChunkRule
    >>> mixer, rule = MultiHeadHyperMixing(16, 2, hypernet_size=32), ChunkRule(4)
    >>> x = torch.randn(3, 7, 16)
    >>> y, _ = mixer(x, chunk=rule)
    >>> first, state = mixer(x[:, :4], chunk=rule, state=mixer.init_state(3))
    >>> last, state = mixer(x[:, 4:], chunk=rule, state=state)
    >>> torch.allclose(y, torch.cat([first, last], dim=1), atol=1e-5)
    True
    """

    chunkable = True
    streamable = True
    cross = "HyperMixing"
    paper = "arXiv:2305.18281"
    cost = "O(T)"

    @dataclass(kw_only=True)
    class Options:
        """The options of :class:`MultiHeadHyperMixing`."""

        hypernet_size: int | None = None
        """Hidden width of the mixing MLP, all heads together; None means 4 D."""

        tied: bool = False
        """Whether both layers of the mixing MLP have the same weights."""

        fix_tm_hidden_size: bool = False
        """Whether each head has the hidden width ``hypernet_size``, instead of a
        share."""

        max_length: int = 3000
        """Position codes made in advance; longer inputs make more when they come."""

        positions: str = "absolute"
        """What the hypernetworks know of time: ``"absolute"`` codes are added to the
        frames, ``"rotary"`` ones turn them head by head (not under chunk rules, and
        without ``normalize_by_frames``), ``"none"`` leaves them as they are."""

        normalize_by_frames: bool = False
        """Whether sums over frames are divided by the number of the frames, so that
        they do not grow with what was heard."""

        learned_decay: bool = False
        """Whether each head learns how fast earlier chunks lose their weight. Frames of
        one chunk weigh alike: without a chunk rule the decay does nothing."""

        backend: str | None = None
        """Force a path of :func:`hyperconformer.ops.hypermixing.hypermixing`."""

    def __init__(self, d_model: int, num_heads: int, **given: Any):
        super().__init__(d_model)
        options = self.Options(**given)
        self.backend = check_backend(options.backend)
        size = options.hypernet_size
        self.hyper = HyperNetwork(
            d_model,
            4 * d_model if size is None else size,
            num_heads=num_heads,
            tied=options.tied,
            fix_tm_hidden_size=options.fix_tm_hidden_size,
        )
        self.layer_norm = nn.LayerNorm(d_model)
        positions = options.positions
        if positions not in POSITIONS:
            raise ValueError(
                f"positions must be one of {', '.join(POSITIONS)}, "
                f"got {quoted(positions)}"
            )
        if positions == "rotary" and options.normalize_by_frames:
            raise ValueError("normalize_by_frames knows no rotary positions")
        self.positions = positions
        self.chunkable = self.streamable = positions != "rotary"
        self.positional_encoding = None
        if positions == "absolute":
            self.positional_encoding = PositionCodes(
                d_model, options.max_length, sinusoidal_codes
            )
        # As integers, so that a cast of the module to half precision leaves them exact.
        bits = sinusoidal_frequencies(d_model).clone().view(torch.int32)
        self.register_buffer("frequency_bits", bits, persistent=False)
        self.normalize_by_frames = options.normalize_by_frames
        self.decay = None
        if options.learned_decay:
            # Heads begin with half-lives from 64 to 4096 frames.
            half_lives = torch.logspace(6, 12, num_heads, base=2.0)
            self.decay = nn.Parameter(torch.logit(0.5 ** (1 / half_lives)))

    def forward(self, x, *, padding_mask=None, chunk=None, state=None):
        """Mix information across frames; see :meth:`TokenMixer.forward`.

        Padded frames come out as the bias of the LayerNorm.

        Raises
        ------
        ValueError
            As :meth:`TokenMixer.check_inputs`; with a state, also if there is no
            chunk rule or the state was made for another one.
        """
        self.check_inputs(x, padding_mask, chunk, state)
        if state is not None:
            return self._step(x, padding_mask, chunk, state)
        codes, frequencies = None, None
        if self.positions == "absolute":
            codes = self.positional_encoding(x.shape[1])
            if not is_exported():  # TorchScript cannot look at bits as another type.
                frequencies = self.frequency_bits.view(torch.float32)
        if chunk is not None or self.normalize_by_frames:
            out, _ = self._mix_in_chunks(x, padding_mask, chunk, codes)
        else:
            z = self._rotate(x) if self.positions == "rotary" else x
            out = hypermixing(
                x,
                z,
                z,
                self.hyper.w1_gen.weights(),
                self.hyper.w2_gen.weights(),
                codes=codes,
                frequencies=frequencies,
                key_padding_mask=padding_mask,
                query_padding_mask=padding_mask,
                backend=self.backend,
            )
        return _normalise(out, self.layer_norm).to(x.dtype), None

    def init_state(self, batch_size, *, chunk=None, device=None, dtype=None):
        """Sums over no frame yet; see :meth:`TokenMixer.init_state`.

        Returns
        -------
        dict of str to torch.Tensor
            ``frames_seen`` (B,) int64 and ``sums`` (B, P, H, R, d), float32 at least,
            see :func:`hyperconformer.ops.hypermixing.chunked.init_past`: P = 1
            running sum, or with a bounded left context a sum for each chunk of it.
        """
        weight = self.hyper.w1_gen.fc1_weights
        device = weight.device if device is None else device
        dtype = weight.dtype if dtype is None else dtype
        sums = chunked.init_past(
            self.hyper.w1_gen.weights(),
            batch_size,
            chunk=chunk,
            normalize=self.normalize_by_frames,
        )
        return {
            "frames_seen": torch.zeros(batch_size, dtype=torch.int64, device=device),
            "sums": sums.to(device, torch.promote_types(dtype, torch.float32)),
        }

    def unsupported_reason(self, chunk=None):
        """See :meth:`TokenMixer.unsupported_reason`."""
        reason = super().unsupported_reason(chunk)
        if reason is None and chunk is None:
            reason = "streaming HyperMixing needs a chunk rule, got none"
        return reason

    def look_ahead(self, x, *, padding_mask=None, chunk, state=None):
        """Sums of all chunks at once; see :meth:`TokenMixer.look_ahead`."""
        own = replace(chunk, right_frames=0)
        if state is None:
            state = self.init_state(
                x.shape[0], chunk=own, device=x.device, dtype=x.dtype
            )
        windows = x.flatten(0, 1)
        hidden = None if padding_mask is None else padding_mask.flatten(0, 1)
        real = chunked.real_frames(
            x[:, :, : own.chunk_frames].flatten(1, 2),
            None
            if padding_mask is None
            else padding_mask[:, :, : own.chunk_frames].flatten(1),
            min(x.shape[2], own.chunk_frames),
        )
        seen = state["frames_seen"][:, None] + F.pad(real.cumsum(1), (1, 0))
        before = seen[:, :-1].flatten()
        self.check_inputs(windows, hidden, chunk, state)
        self._check_state(state, chunk)
        frames_of_step(windows, hidden, before, own)
        codes = self._codes_from(before, x.shape[2])
        out, sums = chunked.hypermixing_look_ahead(
            x,
            self.hyper.w1_gen.weights(),
            self.hyper.w2_gen.weights(),
            chunk=chunk,
            codes=None if codes is None else codes.unflatten(0, x.shape[:2]),
            padding_mask=padding_mask,
            decay=None if self.decay is None else self.decay.sigmoid(),
            normalize=self.normalize_by_frames,
            past=state["sums"],
        )
        y = _normalise(out, self.layer_norm).to(x.dtype)
        return y, {"frames_seen": seen[:, -1], "sums": sums}

    @staticmethod
    def _check_state(state, chunk):
        """Refuse a state that was made for another rule."""
        expected, got = chunked.past_length(chunk), state["sums"].shape[1]
        if expected != got:
            raise ValueError(
                f"a state with sums of {expected} chunks is needed for {chunk}, "
                f"got one with {got}: make it with init_state(chunk=...)"
            )

    def _codes_from(self, seen, frames):
        """(B, T, D) codes of the next frames, by each stream's own clock, or None.

        Not from a table, which would grow for ever.
        """
        if self.positions != "absolute":
            return None
        position = seen[:, None] + torch.arange(frames, device=seen.device)
        return sinusoids(position, self.d_model)

    def _step(self, x, padding_mask, chunk, state):
        self._check_state(state, chunk)
        seen = state["frames_seen"]
        new = frames_of_step(x, padding_mask, seen, chunk)
        codes = self._codes_from(seen, x.shape[1])
        out, sums = self._mix_in_chunks(x, padding_mask, chunk, codes, state["sums"])
        y = _normalise(out, self.layer_norm).to(x.dtype)
        return y, {"frames_seen": seen + new, "sums": sums}

    def _rotate(self, x):
        """Rotary codes, as attention gives them to the heads of its queries."""
        heads = x.unflatten(-1, (len(self.hyper.w1_gen.fc1_weights), -1))
        time = torch.arange(x.shape[1], device=x.device)
        return rotate_half(heads.transpose(1, 2), time).transpose(1, 2).flatten(2)

    def _mix_in_chunks(self, x, padding_mask, chunk, codes, past=None):
        return hypermixing_in_chunks(
            x,
            self.hyper.w1_gen.weights(),
            self.hyper.w2_gen.weights(),
            chunk=chunk,
            codes=codes,
            padding_mask=padding_mask,
            decay=None if self.decay is None else self.decay.sigmoid(),
            normalize=self.normalize_by_frames,
            past=past,
            backend=self.backend,
        )


class HyperNetwork(nn.Module):
    """The two hypernetworks of a mixing MLP: one for each of its layers.

    Arguments
    ---------
    width : int
        Width D of the tokens.
    hypernet_size : int
        Hidden width of the mixing MLP, all heads together.
    num_heads : int
        Heads H.
    tied : bool
        Whether both are one.
    fix_tm_hidden_size : bool
        Whether each head has the hidden width ``hypernet_size``, instead of a share.
    bias : bool
        Whether they have biases.

    Raises
    ------
    ValueError
        If H does not divide ``width`` or ``hypernet_size``.

    Example
    -------
    >>> net = HyperNetwork(16, 32, num_heads=2)
    >>> net.w1_gen.fc2_weights.shape
    torch.Size([2, 16, 8])
    """

    def __init__(
        self,
        width,
        hypernet_size,
        *,
        num_heads=1,
        tied=False,
        fix_tm_hidden_size=False,
        bias=True,
    ):
        super().__init__()
        sizes = {"the model width": width, "hypernet_size": hypernet_size}
        for name, size in sizes.items():
            if num_heads < 1 or size < 1 or size % num_heads:
                raise ValueError(
                    f"num_heads must divide {name}, got {num_heads} heads and {size}"
                )
        share = 1 if fix_tm_hidden_size else num_heads
        shape = (num_heads, width // num_heads, hypernet_size // share)
        self.w1_gen = ParallelMLPs(*shape, bias=bias)
        self.w2_gen = self.w1_gen if tied else ParallelMLPs(*shape, bias=bias)


class ParallelMLPs(nn.Module):
    """The parameters of one hypernetwork: an MLP for each head.

    The input width, which is also the hidden width, is d; the output width is k.

    Arguments
    ---------
    num_heads : int
        Heads H.
    head_width : int
        d.
    output_width : int
        k.
    bias : bool
        Whether the MLPs have biases.

    Example
    -------
    >>> ParallelMLPs(2, 4, 8).weights().fc1_biases.shape
    torch.Size([2, 4])
    """

    def __init__(self, num_heads, head_width, output_width, *, bias=True):
        super().__init__()
        shapes = {
            "fc1_weights": (num_heads, head_width, head_width),
            "fc1_biases": (num_heads, head_width),
            "fc2_weights": (num_heads, output_width, head_width),
            "fc2_biases": (num_heads, output_width),
        }
        for name, shape in shapes.items():
            exists = bias or name.endswith("weights")
            parameter = nn.Parameter(torch.empty(shape)) if exists else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self):
        """Draw the parameters as SpeechBrain does, biases included."""
        for parameter in self.parameters():
            nn.init.xavier_uniform_(parameter, gain=math.sqrt(2.0))

    def weights(self):
        """The parameters as the operator takes them, a :class:`Hypernet`."""
        return Hypernet(
            self.fc1_weights, self.fc1_biases, self.fc2_weights, self.fc2_biases
        )


class PositionCodes(nn.Module):
    """A table of position codes that grows when an input is longer than it.

    The table is no part of the state dict. A ``pe`` that an older state dict holds
    is dropped on loading: it is a function of the sizes alone.

    Arguments
    ---------
    width : int
        Width D of the codes.
    length : int
        Rows made in advance.
    formula : callable
        From (length, width) to a (length, width) table.

    Example
    -------
    >>> codes = PositionCodes(6, 10, sinusoidal_codes)
    >>> codes(10).shape, codes(11).shape
    (torch.Size([10, 6]), torch.Size([20, 6]))
    """

    def __init__(self, width, length, formula):
        super().__init__()
        if length < 1:
            raise ValueError(f"max_length must be >= 1, got {length}")
        self.width = width
        self.formula = formula
        self.register_buffer("pe", formula(length, width), persistent=False)

    def forward(self, length):
        """At least ``length`` rows of codes, on this module's device and dtype."""
        if is_exported():  # A program takes other lengths, and cannot keep a table.
            return self.formula(length, self.width).to(self.pe)
        rows = self.pe.shape[0]
        if rows < length:
            while rows < length:
                rows *= 2
            self.pe = self.formula(rows, self.width).to(self.pe)
        return self.pe

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "pe", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


@kept(maxsize=8)
def sinusoidal_codes(length, width):
    """The Transformer's sine and cosine pairs, rounded as SpeechBrain rounds them.

    https://arxiv.org/abs/1706.03762, section 3.5, in float32 arithmetic throughout.

    Arguments
    ---------
    length : int
        Number of positions.
    width : int
        Width D; it may be odd.

    Returns
    -------
    torch.Tensor
        (length, width) float32 on the CPU. One table serves every caller with these
        sizes: not to be changed in place.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        return sinusoids(torch.arange(length), width)


def sinusoids(positions, width):
    """The codes of :func:`sinusoidal_codes` at any positions.

    Arguments
    ---------
    positions : torch.Tensor
        (...) integer positions from 0.
    width : int
        Width D; it may be odd.

    Returns
    -------
    torch.Tensor
        (..., width) float32 on the device of the positions.

    Example
    -------
    >>> torch.equal(sinusoids(torch.tensor([7, 2]), 6), sinusoidal_codes(8, 6)[[7, 2]])
    True
    """
    frequencies = sinusoidal_frequencies(width)[::2].to(positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    codes = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return codes.flatten(-2)[..., :width].contiguous()


@kept(maxsize=8)
def sinusoidal_frequencies(width):
    """The frequency of each channel of :func:`sinusoids`.

    Arguments
    ---------
    width : int
        Width D; it may be odd.

    Returns
    -------
    torch.Tensor
        (width,) float32, from the CPU whatever the device: late positions magnify a
        last bit. One tensor serves every caller: not to be changed in place.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        steps = torch.arange(0, width, 2, dtype=torch.float32)
        frequencies = torch.exp(steps * -(math.log(10000.0) / width))
        return frequencies.repeat_interleave(2)[:width]


@kept(maxsize=8)
def steep_codes(length, width):
    """The codes of the published HyperMixing, whose frequencies fall twice as fast.

    Row t holds position t + 1, and channel c the frequency ``10000 ** (-2 c / D)``:
    sine in even channels, cosine in odd ones.

    Arguments
    ---------
    length : int
        Number of positions.
    width : int
        Width D; it may be odd.

    Returns
    -------
    torch.Tensor
        (length, width) float32 on the CPU. One table serves every caller with these
        sizes: not to be changed in place.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        positions = torch.arange(1, length + 1, dtype=torch.float64).unsqueeze(1)
        channels = torch.arange(width, dtype=torch.float64)
        angles = positions * 10000.0 ** (-2.0 * channels / width)
        return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()


def _normalise(out, layer_norm):
    """LayerNorm in the dtype of ``out``, which may be wider than the parameters'."""
    return nn.functional.layer_norm(
        out,
        layer_norm.normalized_shape,
        layer_norm.weight.to(out.dtype),
        layer_norm.bias.to(out.dtype),
        layer_norm.eps,
    )


def _fill_padding(tokens, padding_mask):
    """Zero the padded rows of (B, T, D)."""
    if padding_mask is None:
        return tokens
    return tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0)
