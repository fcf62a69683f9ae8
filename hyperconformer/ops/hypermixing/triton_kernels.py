"""Triton kernels of HyperMixing: everything in it that sees tokens.

The steps and the letters are those of ``torch_path``. One program takes one head of
a span of one utterance, and walks over it in tiles of tokens, each of which it reads
once. Where its sums over tokens would not fit the registers, it takes only a block of
the hidden layer's e rows, and other programs take the others: each then writes a part
of the gradient of the tokens. *expand* sums nothing, and takes all rows at once.
 Tokens lie as (B, T, D) and a head owns d neighbouring channels of D. Programs
of neighbouring heads run side by side, so that they share what the memory fetches.

``layer`` is (H, e, d + 1): F and b side by side, or (H, e, d) without b. ``sums`` and
``mixture`` are (H, e + 1, B, d) or (H, e, B, d). What programs add up over tokens
they write apart, with the spans first: nothing depends on the order they run in.

Sizes that are no power of two are masked to the next. All sums are float32;
``OPERAND`` is the dtype that matrices are rounded to before the matrix unit
multiplies them, and ``PRECISION`` how it multiplies float32. The products of
bfloat16 are exact in float32, and under Triton's interpreter, which takes bfloat16
for integers there, ``MULTIPLY`` is float32; elsewhere it is ``OPERAND``.
"""

import triton
import triton.language as tl


@triton.jit
def reduce_kernel(
    tokens,
    padding,
    codes,
    layer,
    sums,
    scale,
    length,
    width,
    span,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LAST_ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """S = A' V and s = sum_t V_t of each span, (spans, H, e + 1, B, d)."""
    head, block = _head_and_block(HIDDEN, BLOCK_E)
    tokens += _utterance(length, width)
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    total = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    last = tl.zeros((BLOCK_D,), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, length), BLOCK_T):
        at, inside = _tile(head, start, length, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, inside, start, length, HAS_PADDING, BLOCK_T)
        v = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(v, codes, scale, at, inside, HAS_CODES)
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, _ = _gelu(h)
        total += _dot(tl.trans(a), v, OPERAND, MULTIPLY, PRECISION)
        last += tl.sum(v, 0)
    sums += tl.program_id(1) * _size_of_sums(HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E)
    at, inside = _matrix(head, block, HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E, BLOCK_D)
    tl.store(sums + at, total, mask=inside)
    if LAST_ROW:
        at, inside = _last_row(head, block, HEAD_WIDTH, HIDDEN, BLOCK_D)
        tl.store(sums + at, last, mask=inside)


@triton.jit
def expand_kernel(
    tokens,
    padding,
    codes,
    layer,
    mixture,
    out,
    scale,
    length,
    width,
    span,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LAST_ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = A R + r, (B, T, D), 0 in padding."""
    head, block = _head_and_block(HIDDEN, BLOCK_E)
    tokens += _utterance(length, width)
    out += _utterance(length, width)
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    r, last = _load_matrix(
        mixture,
        head,
        block,
        HEAD_WIDTH,
        HIDDEN,
        LAST_ROW,
        OPERAND,
        BLOCK_E,
        BLOCK_D,
    )
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, length), BLOCK_T):
        at, inside = _tile(head, start, length, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, inside, start, length, HAS_PADDING, BLOCK_T)
        x = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(x, codes, scale, at, inside, HAS_CODES)
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, _ = _gelu(h)
        y = last[None, :] + _dot(a, r, OPERAND, MULTIPLY, PRECISION)
        y = tl.where(real, y, 0.0)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def expand_backward_kernel(
    tokens,
    padding,
    codes,
    layer,
    mixture,
    grad_out,
    grad_tokens,
    grad_layer,
    grad_mixture,
    scale,
    length,
    width,
    span,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LAST_ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of tokens, and of layer and mixture for each span."""
    head, block = _head_and_block(HIDDEN, BLOCK_E)
    tokens += _utterance(length, width)
    grad_out += _utterance(length, width)
    grad_tokens += _part(block, length, width)
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    r, _ = _load_matrix(
        mixture,
        head,
        block,
        HEAD_WIDTH,
        HIDDEN,
        LAST_ROW,
        OPERAND,
        BLOCK_E,
        BLOCK_D,
    )
    grad_r = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    grad_last = tl.zeros((BLOCK_D,), tl.float32)
    grad_f = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    grad_b = tl.zeros((BLOCK_E,), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, length), BLOCK_T):
        at, inside = _tile(head, start, length, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, inside, start, length, HAS_PADDING, BLOCK_T)
        x = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        g = tl.load(grad_out + at, mask=real, other=0.0).to(tl.float32)
        z = _information(x, codes, scale, at, inside, HAS_CODES)
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, slope = _gelu(h)
        grad_r += _dot(tl.trans(a), g, OPERAND, MULTIPLY, PRECISION)
        grad_last += tl.sum(g, 0)
        grad_h = slope * _dot(g, tl.trans(r), OPERAND, MULTIPLY, PRECISION)
        grad_f += _dot(tl.trans(grad_h), z, OPERAND, MULTIPLY, PRECISION)
        grad_b += tl.sum(grad_h, 0)
        grad_x = scale * _dot(grad_h, f, OPERAND, MULTIPLY, PRECISION)
        tl.store(grad_tokens + at, grad_x.to(grad_tokens.dtype.element_ty), mask=inside)
    _store_layer(
        grad_layer,
        grad_f,
        grad_b,
        head,
        block,
        HEAD_WIDTH,
        HIDDEN,
        HAS_BIAS,
        BLOCK_E,
        BLOCK_D,
    )
    grad_mixture += tl.program_id(1) * _size_of_sums(
        HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E
    )
    at, inside = _matrix(head, block, HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E, BLOCK_D)
    tl.store(grad_mixture + at, grad_r, mask=inside)
    if LAST_ROW:
        at, inside = _last_row(head, block, HEAD_WIDTH, HIDDEN, BLOCK_D)
        tl.store(grad_mixture + at, grad_last, mask=inside)


@triton.jit
def reduce_backward_kernel(
    tokens,
    padding,
    codes,
    layer,
    grad_sums,
    grad_queries,
    grad_tokens,
    grad_layer,
    scale,
    length,
    width,
    span,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LAST_ROW: tl.constexpr,
    ARE_QUERIES: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of tokens, and of layer for each span.

    Where the tokens are the queries too, their gradient as queries is added.
    """
    head, block = _head_and_block(HIDDEN, BLOCK_E)
    tokens += _utterance(length, width)
    if ARE_QUERIES:
        grad_queries += _utterance(length, width)
    grad_tokens += _part(block, length, width)
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    grad_s, grad_last = _load_matrix(
        grad_sums,
        head,
        block,
        HEAD_WIDTH,
        HIDDEN,
        LAST_ROW,
        OPERAND,
        BLOCK_E,
        BLOCK_D,
    )
    grad_f = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    grad_b = tl.zeros((BLOCK_E,), tl.float32)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, length), BLOCK_T):
        at, inside = _tile(head, start, length, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, inside, start, length, HAS_PADDING, BLOCK_T)
        v = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(v, codes, scale, at, inside, HAS_CODES)
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, slope = _gelu(h)
        grad_h = slope * _dot(v, tl.trans(grad_s), OPERAND, MULTIPLY, PRECISION)
        grad_f += _dot(tl.trans(grad_h), z, OPERAND, MULTIPLY, PRECISION)
        grad_b += tl.sum(grad_h, 0)
        grad_x = grad_last[None, :] + _dot(a, grad_s, OPERAND, MULTIPLY, PRECISION)
        grad_x += scale * _dot(grad_h, f, OPERAND, MULTIPLY, PRECISION)
        grad_x = tl.where(real, grad_x, 0.0)
        if ARE_QUERIES:
            once = inside & (block == 0)
            more = tl.load(grad_queries + at, mask=once, other=0.0)
            grad_x += more.to(tl.float32)
        tl.store(grad_tokens + at, grad_x.to(grad_tokens.dtype.element_ty), mask=inside)
    _store_layer(
        grad_layer,
        grad_f,
        grad_b,
        head,
        block,
        HEAD_WIDTH,
        HIDDEN,
        HAS_BIAS,
        BLOCK_E,
        BLOCK_D,
    )


@triton.jit
def _head_and_block(HIDDEN: tl.constexpr, BLOCK_E: tl.constexpr):
    """The head of this program, and the block of its hidden layer."""
    blocks: tl.constexpr = (HIDDEN + BLOCK_E - 1) // BLOCK_E
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks


@triton.jit
def _utterance(length, width):
    """Where this program's utterance starts in (B, T, D)."""
    return tl.program_id(2).to(tl.int64) * length * width


@triton.jit
def _part(block, length, width):
    """Where this program's utterance starts in (blocks, B, T, D)."""
    row = block.to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    return row * length * width


@triton.jit
def _tile(
    head,
    start,
    length,
    width,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Where a tile (t, d) lies in an utterance (T, D), and its mask."""
    t = start + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    at = t[:, None] * width + (head * HEAD_WIDTH + d)[None, :]
    return at, (t < length)[:, None] & (d < HEAD_WIDTH)[None, :]


@triton.jit
def _real(
    padding,
    inside,
    start,
    length,
    HAS_PADDING: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The mask of a tile without what is padding, which is never read."""
    if HAS_PADDING:
        t = start + tl.arange(0, BLOCK_T)
        padded = tl.load(padding + _utterance(length, 1) + t, mask=t < length, other=1)
        inside = inside & (padded == 0)[:, None]
    return inside


@triton.jit
def _information(x, codes, scale, at, inside, HAS_CODES: tl.constexpr):
    """z (t, d): scaled tokens plus position codes."""
    z = scale * x
    if HAS_CODES:
        z += tl.load(codes + at, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _gelu(h):
    """GELU and its slope, with the exact Gaussian distribution function."""
    distribution = 0.5 + 0.5 * tl.erf(h * 0.7071067811865476)
    density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
    return h * distribution, distribution + h * density


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr, MULTIPLY: tl.constexpr, PRECISION: tl.constexpr):
    """A matrix product in float32 of what is rounded to ``OPERAND`` first."""
    return tl.dot(
        a.to(OPERAND).to(MULTIPLY),
        b.to(OPERAND).to(MULTIPLY),
        input_precision=PRECISION,
    )


@triton.jit
def _layer(
    layer,
    head,
    block,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """This program's rows of F (e, d) and of b (e,)."""
    columns: tl.constexpr = HEAD_WIDTH + HAS_BIAS
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    rows = layer + (head * HIDDEN + e) * columns
    inside = (e < HIDDEN)[:, None] & (d < HEAD_WIDTH)[None, :]
    f = tl.load(rows[:, None] + d[None, :], mask=inside, other=0.0)
    b = tl.zeros((BLOCK_E,), tl.float32)
    if HAS_BIAS:
        b = tl.load(rows + HEAD_WIDTH, mask=e < HIDDEN, other=0.0)
    return f.to(OPERAND), b


@triton.jit
def _store_layer(
    grad_layer,
    grad_f,
    grad_b,
    head,
    block,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write this program's part of the gradient, (spans, B, H, e, d + 1)."""
    columns: tl.constexpr = HEAD_WIDTH + HAS_BIAS
    blocks: tl.constexpr = (HIDDEN + BLOCK_E - 1) // BLOCK_E
    part = tl.program_id(1).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    part = part * (tl.num_programs(0) // blocks) + head
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    rows = grad_layer + (part * HIDDEN + e) * columns
    inside = (e < HIDDEN)[:, None] & (d < HEAD_WIDTH)[None, :]
    tl.store(rows[:, None] + d[None, :], grad_f, mask=inside)
    if HAS_BIAS:
        tl.store(rows + HEAD_WIDTH, grad_b, mask=e < HIDDEN)


@triton.jit
def _size_of_sums(
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAST_ROW: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """How many numbers (H, e + 1, B, d) are."""
    blocks: tl.constexpr = (HIDDEN + BLOCK_E - 1) // BLOCK_E
    heads = tl.num_programs(0).to(tl.int64) // blocks
    return heads * tl.num_programs(2) * ((HIDDEN + LAST_ROW) * HEAD_WIDTH)


@triton.jit
def _matrix(
    head,
    block,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAST_ROW: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Where this program's rows (e, d) lie in (H, e + 1, B, d), and their mask."""
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    d = tl.arange(0, BLOCK_D)
    row = head * (HIDDEN + LAST_ROW) + e
    at = (row * tl.num_programs(2) + tl.program_id(2)) * HEAD_WIDTH
    inside = (e < HIDDEN)[:, None] & (d < HEAD_WIDTH)[None, :]
    return at[:, None] + d[None, :], inside


@triton.jit
def _last_row(
    head,
    block,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Where the row (d,) below them all lies; its mask is true in block 0 alone."""
    d = tl.arange(0, BLOCK_D)
    row = head * (HIDDEN + 1) + HIDDEN
    at = (row * tl.num_programs(2) + tl.program_id(2)) * HEAD_WIDTH
    return at + d, (d < HEAD_WIDTH) & (block == 0)


@triton.jit
def _load_matrix(
    matrix,
    head,
    block,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAST_ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """This program's rows (e, d) of (H, e + 1, B, d), and the row (d,) below them.

    That is 0 if there is none, and in all blocks but the first.
    """
    at, inside = _matrix(head, block, HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E, BLOCK_D)
    weights = tl.load(matrix + at, mask=inside, other=0.0)
    last = tl.zeros((BLOCK_D,), tl.float32)
    if LAST_ROW:
        at, inside = _last_row(head, block, HEAD_WIDTH, HIDDEN, BLOCK_D)
        last = tl.load(matrix + at, mask=inside, other=0.0)
    return weights.to(OPERAND), last
