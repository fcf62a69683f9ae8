"""HyperMixing on a GPU, by the kernels of ``triton_kernels``.

The re-associated form of ``torch_path``, in operators that ``torch.compile`` sees:
``hyperconformer::hypermixing_reduce``, ``_generate`` and ``_expand``, one after the
other, or for many short utterances ``_mix``, which is the three in one kernel. Forward
keeps the tokens and the sums over them, in spans also the mixture; backward computes
everything else again.

float32 is multiplied as it is, and so is bfloat16; float16 as TF32, which has its
precision and the range of float32, because sums over tokens leave that of float16.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import gelu

from hyperconformer.ops.backend import is_interpreted
from hyperconformer.ops.hypermixing import chunked
from hyperconformer.ops.hypermixing import triton_kernels as kernels

MAX_WIDTH = 128
"""Widest head, and widest hidden layer of one: their matrices stay in registers."""

MAX_WIDTH_OF_ONE = 64
"""The same where one program mixes a head of a whole utterance: all matrices meet in
its registers."""

TOKENS_PER_PROGRAM = 16
"""Longest utterance that one program takes, over the number of programs that run then.

The fewer they are, the more multiprocessors have nothing to do but for spans.
"""

BYTES_PER_ROW = 32
"""Bytes of a channel that a program reads, over the rows e of what it adds up.

It keeps the (e, d) sums that programs write, and that are read again, few beside the
(T, d) tokens; ``benchmarks/kernel_resources.py`` counts both.
"""


class Multiplication(NamedTuple):
    """How matrices are multiplied.

    Arguments
    ---------
    operand : triton.language.dtype
        What they are rounded to before.
    precision : str
        What the matrix unit does with float32, as ``triton.language.dot`` names it.
    """

    operand: tl.dtype
    precision: str


MULTIPLICATIONS = {
    torch.float32: Multiplication(tl.float32, "ieee"),
    torch.bfloat16: Multiplication(tl.bfloat16, "tf32"),
    torch.float16: Multiplication(tl.float32, "tf32"),
}

EXACT = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""Arithmetic of *generate*, where sums over all tokens cancel; it is tiny."""


def hypermixing(
    values,
    keys,
    queries,
    key_hypernet,
    query_hypernet,
    *,
    codes=None,
    frequencies=None,
    scale=1.0,
    key_padding_mask=None,
    query_padding_mask=None,
):
    """Mix tokens; see :func:`hyperconformer.ops.hypermixing.hypermixing`.

    Arguments are those of
    :func:`hyperconformer.ops.hypermixing.hypermixing` for which
    :func:`unsupported_reason` is None.

    Returns
    -------
    torch.Tensor
        (B, M, D) in the dtype of ``values``, but float32 for float16.
    """
    layers = _Layers.of(key_hypernet, query_hypernet)
    codes = codes if frequencies is None else frequencies
    rows = values.flatten(0, 1)
    places = _places(values, layers.key, codes, scale, key_padding_mask)
    if queries is values and query_padding_mask is key_padding_mask:
        return _mix_with_itself(rows, layers, places).view(queries.shape)
    query_places = _places(queries, layers.query, codes, scale, query_padding_mask)
    query_rows = queries.flatten(0, 1)
    out = _mix_in_spans(rows, query_rows, layers, places, query_places)
    return out.view(queries.shape)


def hypermixing_packed(x, starts, longest, key_hypernet, query_hypernet, codes, scale):
    """Mix; see :func:`hyperconformer.ops.hypermixing.hypermixing_packed`.

    ``codes`` may be the frequencies.
    """
    layers = _Layers.of(key_hypernet, query_hypernet)
    places = _places(x[None], layers.key, codes, scale, None)._replace(
        starts=starts.contiguous(), batch=starts.shape[0] - 1, length=longest
    )
    return _mix_with_itself(x, layers, places)


def hypermixing_in_chunks(
    x,
    key_hypernet,
    query_hypernet,
    *,
    chunk=None,
    codes=None,
    padding_mask=None,
    decay=None,
    normalize=False,
    past=None,
):
    """Mix; see :func:`hyperconformer.ops.hypermixing.hypermixing_in_chunks`.

    The spans of the kernels are the chunks, and each has a mixture of its own.
    Backward keeps the input and the visible sums and mixtures of the chunks.
    """
    layers = _Layers.of(key_hypernet, query_hypernet)
    if chunk is not None:
        chunk.check_no_look_ahead()
    size = x.shape[1] if chunk is None else min(x.shape[1], chunk.chunk_frames)
    places = _places(x, layers.key, codes, 1.0, padding_mask)._replace(span=size)
    counts = chunked.real_frames(x, padding_mask, size)
    sums = _reduce(x.flatten(0, 1), layers.key, layers.has_sum, *places)
    sums = sums.permute(1, 2, 3, 0, 4)
    with torch.autocast(x.device.type, enabled=False):
        sums, past = chunked.visible_sums(sums, counts, chunk, decay, normalize, past)
    sums = sums.flatten(2, 3)[None]
    mixture = _generate(sums, *layers.mixing, EXACT[x.dtype])
    mixture = mixture.unflatten(2, counts.shape).permute(3, 0, 1, 2, 4)
    out = _expand(x.flatten(0, 1), layers.query, mixture, *places)
    return out.view(x.shape), past


def unsupported_reason(values, keys, queries, key_hypernet, query_hypernet):
    """Why the kernels cannot take these arguments.

    Arguments
    ---------
    values : torch.Tensor
        (B, N, D).
    keys : torch.Tensor
        (B, N, D).
    queries : torch.Tensor
        (B, M, D).
    key_hypernet : Hypernet
        The weights F1, b1, G1, c1.
    query_hypernet : Hypernet
        The weights F2, b2, G2, c2.

    Returns
    -------
    str or None
        The reason, or None if they can.
    """
    if keys is not values:
        return "needs one tensor as values and keys, got two"
    if values.dtype not in MULTIPLICATIONS or queries.dtype != values.dtype:
        return (
            "takes float32, bfloat16 or float16 tokens of one dtype, "
            f"got {values.dtype} and {queries.dtype}"
        )
    for hypernet in (key_hypernet, query_hypernet):
        widest = max(hypernet.fc1_weights.shape[1:])
        if widest > MAX_WIDTH:
            return (
                f"takes heads whose width and hidden width are at most {MAX_WIDTH}, "
                f"got {widest}"
            )
    return None


class _Layers(NamedTuple):
    """The weights as the operators take them, float32.

    Arguments
    ---------
    key, query : torch.Tensor
        (H, e, d + 1) F and b, or (H, e, d) without b.
    first, second : torch.Tensor
        (H, k, e + 1) G and c, or (H, k, e) without c.
    has_sum, has_bias : bool
        Whether there is c1, and c2.
    """

    key: Tensor
    query: Tensor
    first: Tensor
    second: Tensor
    has_sum: bool
    has_bias: bool

    @classmethod
    def of(cls, key_hypernet, query_hypernet):
        """Of the two hypernets."""
        f1, b1, g1, c1 = key_hypernet.to(torch.float32)
        f2, b2, g2, c2 = query_hypernet.to(torch.float32)
        layers = map(_with_biases, (f1, f2, g1, g2), (b1, b2, c1, c2))
        return cls(*layers, c1 is not None, c2 is not None)

    @property
    def mixing(self):
        """What *generate* takes."""
        return self[2:]


class _Places(NamedTuple):
    """Where tokens stand: the last arguments of the operators over tokens.

    Arguments
    ---------
    codes : torch.Tensor, optional
        (>= T, D) position codes, (B, T, D) codes of each token, or (D,) float32
        frequencies of sinusoids; contiguous.
    scale : float
        Factor on the tokens.
    padding : torch.Tensor, optional
        (rows,) uint8, 1 = padding.
    starts : torch.Tensor, optional
        (B + 1,) int64 first rows of packed utterances, and the end.
    batch : int
        Utterances B.
    length : int
        Tokens of each utterance, or of the longest if packed.
    span : int
        Tokens of an utterance that one program takes.
    """

    codes: Tensor | None
    scale: float
    padding: Tensor | None
    starts: Tensor | None
    batch: int
    length: int
    span: int

    @property
    def spans(self):
        """How many spans an utterance has."""
        return (self.length + self.span - 1) // self.span


def _places(tokens, layer, codes, scale, mask):
    """:class:`_Places` of (B, T, D) tokens."""
    if codes is not None and codes.dim() == 3:
        codes = codes[:, : tokens.shape[1]]
    return _Places(
        None if codes is None else codes.contiguous(),
        float(scale),
        None if mask is None else mask.flatten().view(torch.uint8),
        None,
        *tokens.shape[:2],
        span_of(tokens.dtype, layer.shape[1]),
    )


def _mix_with_itself(rows, layers, places):
    """Mix tokens (rows, D) that are values, keys and queries."""
    heads = len(layers.first)
    widest = max(rows.shape[1] // heads, layers.key.shape[1], layers.query.shape[1])
    if not fits_one_program(places.batch, places.length, heads, widest):
        query_places = places._replace(span=span_of(rows.dtype, layers.query.shape[1]))
        return _mix_in_spans(rows, rows, layers, places, query_places)
    tensors = rows, *layers[:4]
    keeps_sums = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _mix(rows, *layers, keeps_sums, *places[:-1])[0]


def fits_one_program(batch, length, heads, widest):
    """Whether one program mixes a head of an utterance.

    Arguments
    ---------
    batch : int
        B.
    length : int
        Tokens of the longest utterance.
    heads : int
        H.
    widest : int
        The larger of d and e.

    Returns
    -------
    bool
    """
    return widest <= MAX_WIDTH_OF_ONE and length <= TOKENS_PER_PROGRAM * batch * heads


def _mix_in_spans(values, queries, layers, key_places, query_places):
    """Mix tokens (rows, D) of utterances of any length."""
    sums = _reduce(values, layers.key, layers.has_sum, *key_places)
    mixture = _generate(sums, *layers.mixing, EXACT[values.dtype])
    return _expand(queries, layers.query, mixture[None], *query_places)


@torch.library.custom_op("hyperconformer::hypermixing_reduce", mutates_args=())
def _reduce(
    tokens: Tensor,
    layer: Tensor,
    has_sum: bool,
    codes: Tensor | None,
    scale: float,
    padding: Tensor | None,
    starts: Tensor | None,
    batch: int,
    length: int,
    span: int,
) -> Tensor:
    """S and s of each span, (spans, H, e + has_sum, B, d) float32.

    ``tokens`` is (rows, D), ``layer`` (H, e, d + 1) float32 or (H, e, d) without b;
    the rest is :class:`_Places`.
    """
    places = _Places(codes, scale, padding, starts, batch, length, span)
    sums = layer.new_empty(_sums_shape(tokens, layer, has_sum, places))
    _launch(
        kernels.reduce_kernel,
        tokens.contiguous(),
        layer,
        places,
        sums=sums,
        span_stride=sums[0].numel(),
        LAST_ROW=has_sum,
    )
    return sums


@_reduce.register_fake
def _(tokens, layer, has_sum, codes, scale, padding, starts, batch, length, span):
    places = _Places(codes, scale, padding, starts, batch, length, span)
    return layer.new_empty(_sums_shape(tokens, layer, has_sum, places))


@torch.library.custom_op("hyperconformer::hypermixing_reduce_backward", mutates_args=())
def _reduce_backward(
    grad_sums: Tensor,
    tokens: Tensor,
    layer: Tensor,
    codes: Tensor | None,
    scale: float,
    padding: Tensor | None,
    starts: Tensor | None,
    batch: int,
    length: int,
    span: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens and of their layer."""
    places = _Places(codes, scale, padding, starts, batch, length, span)
    grad_sums, span_stride = _by_span(grad_sums)
    kernel = kernels.reduce_backward_kernel
    parts, layer_parts = _gradient_parts(kernel, tokens, layer, places)
    _launch(
        kernel,
        tokens.contiguous(),
        layer,
        places,
        grad_sums=grad_sums,
        grad_tokens=parts,
        grad_layer=layer_parts,
        rows=tokens.shape[0],
        span_stride=span_stride,
        LAST_ROW=grad_sums.shape[2] > layer.shape[1],
    )
    return _sum_parts(parts, tokens), layer_parts.sum(0)


@_reduce_backward.register_fake
def _(grad_sums, tokens, layer, codes, scale, padding, starts, batch, length, span):
    return tokens.new_empty(tokens.shape), layer.new_empty(layer.shape)


def _keep_for_reduce(ctx, inputs, output):
    """Keep the inputs."""
    tokens, layer, _, codes, scale, padding, starts, *ctx.sizes = inputs
    ctx.save_for_backward(tokens, layer, codes, padding, starts)
    ctx.scale = scale


def _gradients_of_reduce(ctx, grad_sums):
    tokens, layer, codes, padding, starts = ctx.saved_tensors
    gradients = _reduce_backward(
        grad_sums, tokens, layer, codes, ctx.scale, padding, starts, *ctx.sizes
    )
    return (*gradients, *[None] * 8)


_reduce.register_autograd(_gradients_of_reduce, setup_context=_keep_for_reduce)


@torch.library.custom_op("hyperconformer::hypermixing_generate", mutates_args=())
def _generate(
    sums: Tensor,
    first: Tensor,
    second: Tensor,
    has_sum: bool,
    has_bias: bool,
    exact: torch.dtype,
) -> Tensor:
    """R and r (H, e + has_bias, B, d) from the sums (spans, H, e + has_sum, B, d).

    Those of all spans are added up. ``first`` and ``second`` as
    :func:`.torch_path.generate` takes them; ``exact`` is the dtype of the arithmetic.
    """
    spans, heads, _, batch, width = sums.shape
    columns = batch * width
    mixture = sums.new_empty(_mixture_shape(sums, second))
    constants = generate_constants(first, second, has_sum, has_bias, exact)
    grid = heads, triton.cdiv(columns, constants["BLOCK_C"])
    tensors = sums.contiguous(), first, second, mixture
    kernels.generate_kernel[grid](*tensors, spans, columns, **constants)
    return mixture


@_generate.register_fake
def _(sums, first, second, has_sum, has_bias, exact):
    return sums.new_empty(_mixture_shape(sums, second))


def _keep_for_generate(ctx, inputs, output):
    """Keep the inputs, which are small."""
    *tensors, _, _, ctx.exact = inputs
    ctx.save_for_backward(*tensors)


def _gradients_of_generate(ctx, grad_mixture):
    gradients = _generate_backward(*ctx.saved_tensors, grad_mixture, ctx.exact)
    return (*gradients, None, None, None)


def _generate_backward(sums, first, second, grad_mixture, exact):
    """Gradients of the sums, one for all spans, and of the weights."""
    total = sums.sum(0, dtype=exact).flatten(2)
    g1, g2 = first.to(exact), second.to(exact)
    hidden = torch.bmm(g1, total)
    grad_mixture = grad_mixture.flatten(2).to(exact)
    grad_second = torch.bmm(gelu(hidden), grad_mixture.mT).to(second.dtype)
    grad_hidden = torch.bmm(g2, grad_mixture)
    grad_hidden = torch.ops.aten.gelu_backward(grad_hidden, hidden)
    grad_first = torch.bmm(grad_hidden, total.mT).to(first.dtype)
    grad_sums = torch.bmm(g1.mT, grad_hidden).to(sums.dtype).view(sums.shape[1:])
    return grad_sums.expand_as(sums), grad_first, grad_second


_generate.register_autograd(_gradients_of_generate, setup_context=_keep_for_generate)


@torch.library.custom_op("hyperconformer::hypermixing_expand", mutates_args=())
def _expand(
    tokens: Tensor,
    layer: Tensor,
    mixture: Tensor,
    codes: Tensor | None,
    scale: float,
    padding: Tensor | None,
    starts: Tensor | None,
    batch: int,
    length: int,
    span: int,
) -> Tensor:
    """A R + r, (rows, D), 0 in padding.

    ``mixture`` is (spans, H, e + 1, B, d), or (1, ...) for all spans; the others are as
    in :func:`_reduce`.
    """
    places = _Places(codes, scale, padding, starts, batch, length, span)
    mixture, span_stride = _by_span(mixture)
    out = tokens.new_empty(tokens.shape, dtype=_out_dtype(tokens))
    _launch(
        kernels.expand_kernel,
        tokens.contiguous(),
        layer,
        places,
        mixture=mixture,
        out=out,
        span_stride=span_stride,
        LAST_ROW=mixture.shape[2] > layer.shape[1],
    )
    return out


@_expand.register_fake
def _(tokens, layer, mixture, codes, scale, padding, starts, batch, length, span):
    return tokens.new_empty(tokens.shape, dtype=_out_dtype(tokens))


@torch.library.custom_op("hyperconformer::hypermixing_expand_backward", mutates_args=())
def _expand_backward(
    grad_out: Tensor,
    tokens: Tensor,
    layer: Tensor,
    mixture: Tensor,
    codes: Tensor | None,
    scale: float,
    padding: Tensor | None,
    starts: Tensor | None,
    batch: int,
    length: int,
    span: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the tokens, of their layer and of the mixture."""
    places = _Places(codes, scale, padding, starts, batch, length, span)
    mixture, span_stride = _by_span(mixture)
    kernel = kernels.expand_backward_kernel
    parts, layer_parts = _gradient_parts(kernel, tokens, layer, places)
    grad_mixture = mixture.new_empty(places.spans, *mixture.shape[1:])
    _launch(
        kernel,
        tokens.contiguous(),
        layer,
        places,
        mixture=mixture,
        grad_out=grad_out.contiguous(),
        grad_tokens=parts,
        grad_layer=layer_parts,
        grad_mixture=grad_mixture,
        rows=tokens.shape[0],
        span_stride=span_stride,
        grad_stride=mixture[0].numel(),
        LAST_ROW=mixture.shape[2] > layer.shape[1],
    )
    if len(mixture) == 1:
        grad_mixture = grad_mixture.sum(0, keepdim=True)
    return _sum_parts(parts, tokens), layer_parts.sum(0), grad_mixture


@_expand_backward.register_fake
def _(
    grad_out,
    tokens,
    layer,
    mixture,
    codes,
    scale,
    padding,
    starts,
    batch,
    length,
    span,
):
    return tuple(t.new_empty(t.shape) for t in (tokens, layer, mixture))


def _keep_for_expand(ctx, inputs, output):
    """Keep the inputs."""
    tokens, layer, mixture, codes, scale, padding, starts, *ctx.sizes = inputs
    ctx.save_for_backward(tokens, layer, mixture, codes, padding, starts)
    ctx.scale = scale


def _gradients_of_expand(ctx, grad_out):
    *tensors, codes, padding, starts = ctx.saved_tensors
    gradients = _expand_backward(
        grad_out, *tensors, codes, ctx.scale, padding, starts, *ctx.sizes
    )
    return (*gradients, *[None] * 7)


_expand.register_autograd(_gradients_of_expand, setup_context=_keep_for_expand)


@torch.library.custom_op("hyperconformer::hypermixing_mix", mutates_args=())
def _mix(
    tokens: Tensor,
    key_layer: Tensor,
    query_layer: Tensor,
    first: Tensor,
    second: Tensor,
    has_sum: bool,
    has_bias: bool,
    keeps_sums: bool,
    codes: Tensor | None,
    scale: float,
    padding: Tensor | None,
    starts: Tensor | None,
    batch: int,
    length: int,
) -> tuple[Tensor, Tensor]:
    """*reduce*, *generate* and *expand*: (rows, D), and for backward the sums.

    These are as :func:`_reduce` returns them for one span; empty unless kept. The
    arguments are those of the three.
    """
    out = tokens.new_empty(tokens.shape, dtype=_out_dtype(tokens))
    sums = _kept_sums(tokens, key_layer, has_sum, keeps_sums, batch)
    constants = mix_constants(
        tokens.dtype,
        tokens.shape[1] // len(first),
        first,
        second,
        has_sum,
        has_bias,
        HAS_PADDING=padding is not None,
        IS_PACKED=starts is not None,
        CODES=_kind_of(codes),
        KEY_BIAS=_has_bias(key_layer, tokens),
        QUERY_BIAS=_has_bias(query_layer, tokens),
        KEEPS_SUMS=keeps_sums,
    )
    tensors = tokens.contiguous(), padding, starts, codes, key_layer, query_layer
    kernels.mix_kernel[len(first), 1, batch](
        *tensors, first, second, sums, out, scale, length, tokens.shape[1], **constants
    )
    return out, sums


@_mix.register_fake
def _(tokens, key_layer, query_layer, first, second, has_sum, has_bias, *rest):
    keeps_sums, _, _, _, _, batch, _ = rest
    out = tokens.new_empty(tokens.shape, dtype=_out_dtype(tokens))
    return out, _kept_sums(tokens, key_layer, has_sum, keeps_sums, batch)


def _kept_sums(tokens, layer, has_sum, keeps_sums, batch):
    """Room for the sums of one span, or for none."""
    places = _Places(None, 1.0, None, None, batch, length=1, span=1)
    shape = _sums_shape(tokens, layer, has_sum, places) if keeps_sums else (0,)
    return layer.new_empty(shape)


def _keep_for_mix(ctx, inputs, output):
    """Keep the inputs and the sums."""
    *tensors, ctx.has_sum, ctx.has_bias, _, codes, scale, padding, starts = inputs[:12]
    ctx.scale, ctx.sizes = scale, inputs[12:]
    ctx.save_for_backward(*tensors, output[1], codes, padding, starts)


def _gradients_of_mix(ctx, grad_out, _):
    saved = ctx.saved_tensors
    tokens, key_layer, query_layer, first, second, sums, codes, padding, starts = saved
    exact = EXACT[tokens.dtype]
    places = _Places(codes, ctx.scale, padding, starts, *ctx.sizes, span=0)
    key_places, query_places = (
        places._replace(span=span_of(tokens.dtype, layer.shape[1]))
        for layer in (key_layer, query_layer)
    )
    if sums.numel() == 0:  # A graph that was made without gradients gets some.
        sums = _reduce(tokens, key_layer, ctx.has_sum, *key_places)
    mixture = _generate(sums, first, second, ctx.has_sum, ctx.has_bias, exact)
    grad_tokens, grad_query_layer, grad_mixture = _expand_backward(
        grad_out, tokens, query_layer, mixture[None], *query_places
    )
    grad_sums, grad_first, grad_second = _generate_backward(
        sums, first, second, grad_mixture[0], exact
    )
    grad_sums = grad_sums[:1].expand(key_places.spans, *sums.shape[1:])
    grad_values, grad_key_layer = _reduce_backward(
        grad_sums, tokens, key_layer, *key_places
    )
    weights = grad_key_layer, grad_query_layer, grad_first, grad_second
    return (grad_tokens + grad_values, *weights, *[None] * 9)


_mix.register_autograd(_gradients_of_mix, setup_context=_keep_for_mix)


def _launch(kernel, tokens, layer, places, **arguments):
    """Run a kernel over heads, spans of tokens and utterances."""
    heads, hidden = layer.shape[:2]
    width = tokens.shape[1]
    constants = kernel_constants(
        kernel,
        tokens.dtype,
        width // heads,
        hidden,
        places.span,
        HAS_PADDING=places.padding is not None,
        IS_PACKED=places.starts is not None,
        CODES=_kind_of(places.codes),
        HAS_BIAS=_has_bias(layer, tokens),
    )
    blocks = triton.cdiv(hidden, constants["BLOCK_E"])
    kernel[heads * blocks, places.spans, places.batch](
        tokens=tokens,
        padding=places.padding,
        starts=places.starts,
        codes=places.codes,
        layer=layer,
        scale=places.scale,
        length=places.length,
        width=width,
        span=places.span,
        **arguments,
        **constants,
    )


def _kind_of(codes):
    """What the kernels call codes of so many dimensions."""
    if codes is None:
        return "none"
    return ("sinusoids", "table", "rows")[codes.dim() - 1]


def _has_bias(layer, tokens):
    """Whether (H, e, d + 1) weights of (rows, D) tokens have their last column."""
    return layer.shape[2] * len(layer) > tokens.shape[1]


def kernel_constants(kernel, dtype, head_width, hidden, span, **constants):
    """What a kernel over tokens is compiled for, and how many warps and stages it gets.

    Arguments
    ---------
    kernel : triton.JITFunction
        One of ``triton_kernels``.
    dtype : torch.dtype
        Of the tokens.
    head_width : int
        d.
    hidden : int
        e.
    span : int
        Tokens that one program takes.
    **constants : bool or str
        The other constants that the kernel takes, save ``LAST_ROW``.

    Returns
    -------
    dict of str to Any
        Its compile-time arguments and options, by name.
    """
    operand, precision = MULTIPLICATIONS[dtype]
    block_t, num_warps, num_stages = _tile_and_warps(kernel, dtype, _block(head_width))
    return {
        "HEAD_WIDTH": head_width,
        "HIDDEN": hidden,
        **constants,
        "OPERAND": operand,
        "MULTIPLY": tl.float32 if is_interpreted() else operand,
        "PRECISION": precision,
        "BLOCK_T": min(block_t, _block(span)),
        "BLOCK_E": _hidden_block(kernel, head_width, hidden),
        "BLOCK_D": _block(head_width),
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def generate_constants(first, second, has_sum, has_bias, exact):
    """What *generate* is compiled for.

    Arguments
    ---------
    first : torch.Tensor
        (H, k, e + has_sum) G1 and c1.
    second : torch.Tensor
        (H, k, e + has_bias) G2 and c2.
    has_sum : bool
        Whether there is c1.
    has_bias : bool
        Whether there is c2.
    exact : torch.dtype
        Of the arithmetic.

    Returns
    -------
    dict of str to Any
        Its compile-time arguments and options, by name.
    """
    key_hidden, query_hidden = first.shape[2] - has_sum, second.shape[2] - has_bias
    return {
        "MIXING": first.shape[1],
        "KEY_HIDDEN": key_hidden,
        "QUERY_HIDDEN": query_hidden,
        "HAS_SUM": has_sum,
        "HAS_BIAS": has_bias,
        "EXACT": tl.float64 if exact == torch.float64 else tl.float32,
        "BLOCK_K": 16,
        "BLOCK_E": _block(key_hidden),
        "BLOCK_Q": _block(query_hidden),
        "BLOCK_C": 16,
        "num_warps": 4,
        "num_stages": 1,
    }


def mix_constants(dtype, head_width, first, second, has_sum, has_bias, **constants):
    """What the kernel that does all the mixing is compiled for.

    Arguments
    ---------
    dtype : torch.dtype
        Of the tokens.
    head_width : int
        d.
    first, second, has_sum, has_bias
        As :func:`generate_constants` takes them.
    **constants : bool or str
        The other constants that the kernel takes.

    Returns
    -------
    dict of str to Any
        Its compile-time arguments and options, by name.
    """
    operand, precision = MULTIPLICATIONS[dtype]
    block_d = _block(head_width)
    block_t, num_warps, num_stages = _tile_and_warps(kernels.mix_kernel, dtype, block_d)
    generate = generate_constants(first, second, has_sum, has_bias, EXACT[dtype])
    del generate["BLOCK_C"]
    return {
        **generate,
        "HEAD_WIDTH": head_width,
        **constants,
        "OPERAND": operand,
        "MULTIPLY": tl.float32 if is_interpreted() else operand,
        "PRECISION": precision,
        "BLOCK_T": block_t,
        "BLOCK_D": block_d,
        "num_warps": num_warps,
        "num_stages": num_stages,
    }


def _tile_and_warps(kernel, dtype, block_d):
    """Tokens of a tile, warps and pipeline stages, chosen so that no register spills.

    ``benchmarks/kernel_resources.py`` shows that none does.
    """
    if kernel is kernels.mix_kernel:
        block_t = 16 if block_d > 32 and dtype != torch.bfloat16 else 32
        return block_t, (8 if block_d > 16 else 4), 1
    if block_d > 64:
        return 16, 8, 1
    if block_d > 32:
        return 32, 8, (1 if dtype == torch.float32 else 2)
    if dtype == torch.float16:
        return 32, 8, 2
    forward = kernel in (kernels.reduce_kernel, kernels.expand_kernel)
    if dtype == torch.float32 and not forward:
        return 16, 8, 1
    block_t = 32 if forward else 16
    return (2 * block_t if dtype == torch.bfloat16 else block_t), 4, 2


def _hidden_block(kernel, head_width, hidden):
    """Rows e of a program, all or else as many as its sums have registers for."""
    rows = _block(hidden)
    if kernel is kernels.expand_kernel:
        return rows
    return min(rows, 32 if _block(head_width) > 64 else 64)


def span_of(dtype, hidden):
    """How many tokens one program takes, a multiple of every tile.

    Arguments
    ---------
    dtype : torch.dtype
        Of the tokens.
    hidden : int
        e.

    Returns
    -------
    int
    """
    return BYTES_PER_ROW // dtype.itemsize * _block(hidden)


def _block(size):
    """The next power of two that the matrix unit takes."""
    return max(16, triton.next_power_of_2(size))


def _sums_shape(tokens, layer, has_sum, places):
    """(spans, H, e + has_sum, B, d)."""
    heads, hidden = layer.shape[:2]
    width = tokens.shape[1] // heads
    return places.spans, heads, hidden + has_sum, places.batch, width


def _mixture_shape(sums, second):
    """(H, e + 1, B, d)."""
    return sums.shape[1], second.shape[2], *sums.shape[3:]


def _by_span(tensor):
    """(spans, ...) contiguous, and its step from span to span.

    Where all spans have one, that is (1, ...) and the step 0.
    """
    if tensor.shape[0] == 1 or tensor.stride(0) == 0:
        return tensor[:1].contiguous(), 0
    return tensor.contiguous(), tensor[0].numel()


def _gradient_parts(kernel, tokens, layer, places):
    """Room for the gradients of tokens and of their layer, in parts to be added up.

    (blocks of e, rows, D), float32 if there are several, and (spans B, H, e, d + 1).
    """
    heads, hidden = layer.shape[:2]
    width = tokens.shape[1] // heads
    blocks = triton.cdiv(hidden, _hidden_block(kernel, width, hidden))
    dtype = tokens.dtype if blocks == 1 else torch.float32
    layer_parts = places.spans * places.batch
    return (
        tokens.new_empty(blocks, *tokens.shape, dtype=dtype),
        layer.new_empty(layer_parts, *layer.shape),
    )


def _sum_parts(parts, tokens):
    """The gradient of tokens, in their dtype."""
    return parts[0] if len(parts) == 1 else parts.sum(0).to(tokens.dtype)


def _with_biases(weights, biases):
    """(H, ...) weights with their biases, if any, as one more column; contiguous."""
    if biases is None:
        return weights.contiguous()
    return torch.cat([weights, biases.unsqueeze(-1)], dim=-1)


def _out_dtype(tokens):
    """That of the tokens; float16 cannot hold what comes out before the LayerNorm."""
    return torch.float32 if tokens.dtype == torch.float16 else tokens.dtype
