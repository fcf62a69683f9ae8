"""Triton kernels of HyperMixing: *reduce*, *generate*, *expand*, and their backward;
and *mix*, the first three in one.

The letters are those of ``torch_path``. Tokens are rows (rows, D) of all utterances,
one after another: either ``length`` of each, or packed, utterance b from row
``starts[b]`` to ``starts[b + 1]``. A head owns d neighbouring channels of D, and
programs of neighbouring heads run side by side, so that they share what the memory
fetches.

A program takes one head of a span of one utterance, and walks over it in tiles of
tokens, each of which it reads once. Where its sums would not fit the registers, it
takes only a block of the hidden layer's e rows, and other programs take the others:
each then writes a part of the gradient of the tokens. *expand* sums nothing, and
takes all rows at once.

``layer`` is (H, e, d + 1): F and b side by side, or (H, e, d) without b. ``sums`` and
``mixture`` are (spans, H, e + 1, B, d), or (spans, H, e, B, d). What programs add up
over tokens they write apart: nothing depends on the order they run in. A mixture, and
the gradient of sums, may be one for all spans: then ``span_stride`` is 0.

Sizes that are no power of two are masked to the next. All sums are float32;
``OPERAND`` is the dtype that matrices are rounded to before the matrix unit
multiplies them, and ``PRECISION`` how it multiplies float32. The products of
bfloat16 are exact in float32, and under Triton's interpreter, which takes bfloat16
for integers there, ``MULTIPLY`` is float32; elsewhere it is ``OPERAND``.

``CODES`` says what ``codes`` holds: "none"; a "table" (>= T, D) of position codes;
"rows" (rows, D) of codes, one for each token; or "sinusoids": the frequencies (D,) of
the sines and cosines that are the codes.
"""

import triton
import triton.language as tl


@triton.jit
def reduce_kernel(
    tokens,
    padding,
    starts,
    codes,
    layer,
    sums,
    scale,
    length,
    width,
    span,
    span_stride,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_PACKED: tl.constexpr,
    CODES: tl.constexpr,
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
    row, length = _utterance(starts, length, IS_PACKED)
    tokens += row * width
    if CODES == "rows":
        codes += row * width
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    first = tl.program_id(1) * span
    total, last = _add_up(
        tokens,
        padding,
        codes,
        f,
        b,
        row,
        head,
        scale,
        first,
        tl.minimum(first + span, length),
        width,
        HEAD_WIDTH,
        HAS_PADDING,
        CODES,
        OPERAND,
        MULTIPLY,
        PRECISION,
        BLOCK_T,
        BLOCK_E,
        BLOCK_D,
    )
    sums += tl.program_id(1).to(tl.int64) * span_stride
    at, inside = _matrix(head, block, HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E, BLOCK_D)
    tl.store(sums + at, total, mask=inside)
    if LAST_ROW:
        at, inside = _last_row(head, block, HEAD_WIDTH, HIDDEN, BLOCK_D)
        tl.store(sums + at, last, mask=inside)


@triton.jit
def expand_kernel(
    tokens,
    padding,
    starts,
    codes,
    layer,
    mixture,
    out,
    scale,
    length,
    width,
    span,
    span_stride,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_PACKED: tl.constexpr,
    CODES: tl.constexpr,
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
    row, length = _utterance(starts, length, IS_PACKED)
    tokens += row * width
    if CODES == "rows":
        codes += row * width
    out += row * width
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    r, last = _load_matrix(
        mixture + tl.program_id(1).to(tl.int64) * span_stride,
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
    _give_out(
        tokens,
        padding,
        codes,
        out,
        f,
        b,
        r,
        last,
        row,
        head,
        scale,
        first,
        tl.minimum(first + span, length),
        width,
        HEAD_WIDTH,
        HAS_PADDING,
        CODES,
        OPERAND,
        MULTIPLY,
        PRECISION,
        BLOCK_T,
        BLOCK_D,
    )


@triton.jit
def expand_backward_kernel(
    tokens,
    padding,
    starts,
    codes,
    layer,
    mixture,
    grad_out,
    grad_tokens,
    grad_layer,
    grad_mixture,
    scale,
    rows,
    length,
    width,
    span,
    span_stride,
    grad_stride,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_PACKED: tl.constexpr,
    CODES: tl.constexpr,
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
    row, length = _utterance(starts, length, IS_PACKED)
    tokens += row * width
    if CODES == "rows":
        codes += row * width
    grad_out += row * width
    grad_tokens += (block.to(tl.int64) * rows + row) * width
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    r, _ = _load_matrix(
        mixture + tl.program_id(1).to(tl.int64) * span_stride,
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
    end = tl.minimum(first + span, length)
    for start in range(first, end, BLOCK_T):
        at, inside = _tile(head, start, end, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, row, inside, start, end, HAS_PADDING, BLOCK_T)
        x = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        g = tl.load(grad_out + at, mask=real, other=0.0).to(tl.float32)
        z = _information(
            x,
            codes,
            scale,
            head,
            start,
            at,
            inside,
            HEAD_WIDTH,
            CODES,
            BLOCK_T,
            BLOCK_D,
        )
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
    grad_mixture += tl.program_id(1).to(tl.int64) * grad_stride
    at, inside = _matrix(head, block, HEAD_WIDTH, HIDDEN, LAST_ROW, BLOCK_E, BLOCK_D)
    tl.store(grad_mixture + at, grad_r, mask=inside)
    if LAST_ROW:
        at, inside = _last_row(head, block, HEAD_WIDTH, HIDDEN, BLOCK_D)
        tl.store(grad_mixture + at, grad_last, mask=inside)


@triton.jit
def reduce_backward_kernel(
    tokens,
    padding,
    starts,
    codes,
    layer,
    grad_sums,
    grad_tokens,
    grad_layer,
    scale,
    rows,
    length,
    width,
    span,
    span_stride,
    HEAD_WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_PACKED: tl.constexpr,
    CODES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    LAST_ROW: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of tokens, and of layer for each span."""
    head, block = _head_and_block(HIDDEN, BLOCK_E)
    row, length = _utterance(starts, length, IS_PACKED)
    tokens += row * width
    if CODES == "rows":
        codes += row * width
    grad_tokens += (block.to(tl.int64) * rows + row) * width
    f, b = _layer(
        layer, head, block, HEAD_WIDTH, HIDDEN, HAS_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    grad_s, grad_last = _load_matrix(
        grad_sums + tl.program_id(1).to(tl.int64) * span_stride,
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
    end = tl.minimum(first + span, length)
    for start in range(first, end, BLOCK_T):
        at, inside = _tile(head, start, end, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, row, inside, start, end, HAS_PADDING, BLOCK_T)
        v = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(
            v,
            codes,
            scale,
            head,
            start,
            at,
            inside,
            HEAD_WIDTH,
            CODES,
            BLOCK_T,
            BLOCK_D,
        )
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, slope = _gelu(h)
        grad_h = slope * _dot(v, tl.trans(grad_s), OPERAND, MULTIPLY, PRECISION)
        grad_f += _dot(tl.trans(grad_h), z, OPERAND, MULTIPLY, PRECISION)
        grad_b += tl.sum(grad_h, 0)
        grad_x = grad_last[None, :] + _dot(a, grad_s, OPERAND, MULTIPLY, PRECISION)
        grad_x += scale * _dot(grad_h, f, OPERAND, MULTIPLY, PRECISION)
        grad_x = tl.where(real, grad_x, 0.0)
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
def generate_kernel(
    sums,
    first,
    second,
    mixture,
    spans,
    columns,
    MIXING: tl.constexpr,
    KEY_HIDDEN: tl.constexpr,
    QUERY_HIDDEN: tl.constexpr,
    HAS_SUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """R = G2' GELU(G1 S + c1 s) and r = c2' GELU(...), of some columns of (B, d).

    ``sums`` is (spans, H, e1 + 1, columns), ``mixture`` (H, e2 + 1, columns),
    ``first`` (H, k, e1 + 1), ``second`` (H, k, e2 + 1), each without its + 1 where
    that bias is absent. The sums of all spans are added up; P and M, of k rows, stay
    inside. All arithmetic is in ``EXACT``: what is as large as the sums cancels in P.
    """
    head = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    e = tl.arange(0, BLOCK_E)
    q = tl.arange(0, BLOCK_Q)
    is_column = c < columns
    is_sum = (e < KEY_HIDDEN)[:, None] & is_column[None, :]
    total = tl.zeros((BLOCK_E, BLOCK_C), EXACT)
    last = tl.zeros((BLOCK_C,), EXACT)
    rows = KEY_HIDDEN + HAS_SUM
    for span in range(spans):
        part = sums + (span * tl.num_programs(0) + head).to(tl.int64) * rows * columns
        at = e[:, None] * columns + c[None, :]
        total += tl.load(part + at, mask=is_sum, other=0.0).to(EXACT)
        if HAS_SUM:
            s = tl.load(part + KEY_HIDDEN * columns + c, mask=is_column, other=0.0)
            last += s.to(EXACT)
    result, result_last = _generate(
        total,
        last,
        first,
        second,
        head,
        MIXING,
        KEY_HIDDEN,
        QUERY_HIDDEN,
        HAS_SUM,
        HAS_BIAS,
        EXACT,
        BLOCK_K,
        BLOCK_E,
        BLOCK_Q,
        BLOCK_C,
    )
    mixture += head.to(tl.int64) * (QUERY_HIDDEN + HAS_BIAS) * columns
    inside = (q < QUERY_HIDDEN)[:, None] & is_column[None, :]
    tl.store(mixture + q[:, None] * columns + c[None, :], result, mask=inside)
    if HAS_BIAS:
        tl.store(mixture + QUERY_HIDDEN * columns + c, result_last, mask=is_column)


@triton.jit
def mix_kernel(
    tokens,
    padding,
    starts,
    codes,
    key_layer,
    query_layer,
    first,
    second,
    sums,
    out,
    scale,
    length,
    width,
    HEAD_WIDTH: tl.constexpr,
    MIXING: tl.constexpr,
    KEY_HIDDEN: tl.constexpr,
    QUERY_HIDDEN: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    IS_PACKED: tl.constexpr,
    CODES: tl.constexpr,
    KEY_BIAS: tl.constexpr,
    QUERY_BIAS: tl.constexpr,
    HAS_SUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEPS_SUMS: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """*reduce*, *generate* and *expand* of a head of one utterance, in one program.

    The mixture stays inside, and so do the sums, unless backward needs them.
    """
    head = tl.program_id(0)
    row, length = _utterance(starts, length, IS_PACKED)
    tokens += row * width
    if CODES == "rows":
        codes += row * width
    f, b = _layer(
        key_layer, head, 0, HEAD_WIDTH, KEY_HIDDEN, KEY_BIAS, OPERAND, BLOCK_E, BLOCK_D
    )
    total, last = _add_up(
        tokens,
        padding,
        codes,
        f,
        b,
        row,
        head,
        scale,
        0,
        length,
        width,
        HEAD_WIDTH,
        HAS_PADDING,
        CODES,
        OPERAND,
        MULTIPLY,
        PRECISION,
        BLOCK_T,
        BLOCK_E,
        BLOCK_D,
    )
    if KEEPS_SUMS:
        at, inside = _matrix(head, 0, HEAD_WIDTH, KEY_HIDDEN, HAS_SUM, BLOCK_E, BLOCK_D)
        tl.store(sums + at, total, mask=inside)
        if HAS_SUM:
            at, inside = _last_row(head, 0, HEAD_WIDTH, KEY_HIDDEN, BLOCK_D)
            tl.store(sums + at, last, mask=inside)
    r, r_last = _generate(
        total.to(EXACT),
        last.to(EXACT),
        first,
        second,
        head,
        MIXING,
        KEY_HIDDEN,
        QUERY_HIDDEN,
        HAS_SUM,
        HAS_BIAS,
        EXACT,
        BLOCK_K,
        BLOCK_E,
        BLOCK_Q,
        BLOCK_D,
    )
    f, b = _layer(
        query_layer,
        head,
        0,
        HEAD_WIDTH,
        QUERY_HIDDEN,
        QUERY_BIAS,
        OPERAND,
        BLOCK_Q,
        BLOCK_D,
    )
    _give_out(
        tokens,
        padding,
        codes,
        out + row * width,
        f,
        b,
        r.to(tl.float32).to(OPERAND),
        r_last.to(tl.float32),
        row,
        head,
        scale,
        0,
        length,
        width,
        HEAD_WIDTH,
        HAS_PADDING,
        CODES,
        OPERAND,
        MULTIPLY,
        PRECISION,
        BLOCK_T,
        BLOCK_D,
    )


@triton.jit
def _add_up(
    tokens,
    padding,
    codes,
    f,
    b,
    row,
    head,
    scale,
    first,
    end,
    width,
    HEAD_WIDTH: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    CODES: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A' V (e, d) and sum_t V_t (d,) of the tokens from ``first`` to ``end``."""
    total = tl.zeros((BLOCK_E, BLOCK_D), tl.float32)
    last = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(first, end, BLOCK_T):
        at, inside = _tile(head, start, end, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, row, inside, start, end, HAS_PADDING, BLOCK_T)
        v = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(
            v,
            codes,
            scale,
            head,
            start,
            at,
            inside,
            HEAD_WIDTH,
            CODES,
            BLOCK_T,
            BLOCK_D,
        )
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, _ = _gelu(h)
        total += _dot(tl.trans(a), v, OPERAND, MULTIPLY, PRECISION)
        last += tl.sum(v, 0)
    return total, last


@triton.jit
def _generate(
    total,
    last,
    first,
    second,
    head,
    MIXING: tl.constexpr,
    KEY_HIDDEN: tl.constexpr,
    QUERY_HIDDEN: tl.constexpr,
    HAS_SUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """R (e2, columns) and r (columns,) from S (e1, columns) and s, in ``EXACT``."""
    e = tl.arange(0, BLOCK_E)
    q = tl.arange(0, BLOCK_Q)
    result = tl.zeros((BLOCK_Q, BLOCK_C), EXACT)
    result_last = tl.zeros((BLOCK_C,), EXACT)
    for start in range(0, MIXING, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        g1 = first + (head * MIXING + k) * (KEY_HIDDEN + HAS_SUM)
        is_weight = (k < MIXING)[:, None] & (e < KEY_HIDDEN)[None, :]
        weights = tl.load(g1[:, None] + e[None, :], mask=is_weight, other=0.0)
        p = tl.dot(weights.to(EXACT), total, input_precision="ieee", out_dtype=EXACT)
        if HAS_SUM:
            c1 = tl.load(g1 + KEY_HIDDEN, mask=k < MIXING, other=0.0).to(EXACT)
            p += c1[:, None] * last[None, :]
        m, slope = _gelu(p)
        g2 = second + (head * MIXING + k) * (QUERY_HIDDEN + HAS_BIAS)
        is_weight_2 = (k < MIXING)[:, None] & (q < QUERY_HIDDEN)[None, :]
        weights_2 = tl.load(g2[:, None] + q[None, :], mask=is_weight_2, other=0.0)
        weights_2 = tl.trans(weights_2.to(EXACT))
        result += tl.dot(weights_2, m, input_precision="ieee", out_dtype=EXACT)
        if HAS_BIAS:
            c2 = tl.load(g2 + QUERY_HIDDEN, mask=k < MIXING, other=0.0).to(EXACT)
            result_last += tl.sum(c2[:, None] * m, 0)
    return result, result_last


@triton.jit
def _give_out(
    tokens,
    padding,
    codes,
    out,
    f,
    b,
    r,
    last,
    row,
    head,
    scale,
    first,
    end,
    width,
    HEAD_WIDTH: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    CODES: tl.constexpr,
    OPERAND: tl.constexpr,
    MULTIPLY: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write A R + r of the tokens from ``first`` to ``end``, 0 in padding."""
    for start in range(first, end, BLOCK_T):
        at, inside = _tile(head, start, end, width, HEAD_WIDTH, BLOCK_T, BLOCK_D)
        real = _real(padding, row, inside, start, end, HAS_PADDING, BLOCK_T)
        x = tl.load(tokens + at, mask=real, other=0.0).to(tl.float32)
        z = _information(
            x,
            codes,
            scale,
            head,
            start,
            at,
            inside,
            HEAD_WIDTH,
            CODES,
            BLOCK_T,
            BLOCK_D,
        )
        h = b[None, :] + _dot(z, tl.trans(f), OPERAND, MULTIPLY, PRECISION)
        a, _ = _gelu(h)
        y = last[None, :] + _dot(a, r, OPERAND, MULTIPLY, PRECISION)
        y = tl.where(real, y, 0.0)
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _head_and_block(HIDDEN: tl.constexpr, BLOCK_E: tl.constexpr):
    """The head of this program, and the block of its hidden layer."""
    blocks: tl.constexpr = (HIDDEN + BLOCK_E - 1) // BLOCK_E
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks


@triton.jit
def _utterance(starts, length, IS_PACKED: tl.constexpr):
    """The first row of this program's utterance, and how many rows it has."""
    row = tl.program_id(2).to(tl.int64) * length
    if IS_PACKED:
        row = tl.load(starts + tl.program_id(2))
        length = (tl.load(starts + tl.program_id(2) + 1) - row).to(tl.int32)
    return row, length


@triton.jit
def _tile(
    head,
    start,
    end,
    width,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Where a tile (t, d) lies in an utterance (T, D), and its mask."""
    t = start + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    at = t[:, None] * width + (head * HEAD_WIDTH + d)[None, :]
    return at, (t < end)[:, None] & (d < HEAD_WIDTH)[None, :]


@triton.jit
def _real(
    padding,
    row,
    inside,
    start,
    end,
    HAS_PADDING: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The mask of a tile without what is padding, which is never read."""
    if HAS_PADDING:
        t = start + tl.arange(0, BLOCK_T)
        padded = tl.load(padding + row + t, mask=t < end, other=1)
        inside = inside & (padded == 0)[:, None]
    return inside


@triton.jit
def _information(
    x,
    codes,
    scale,
    head,
    start,
    at,
    inside,
    HEAD_WIDTH: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """z (t, d): scaled tokens plus position codes."""
    z = scale * x
    if CODES == "table" or CODES == "rows":
        z += tl.load(codes + at, mask=inside, other=0.0).to(tl.float32)
    if CODES == "sinusoids":
        d = tl.arange(0, BLOCK_D)
        channel = head * HEAD_WIDTH + d
        frequency = tl.load(codes + channel, mask=d < HEAD_WIDTH, other=0.0)
        t = (start + tl.arange(0, BLOCK_T)).to(tl.float32)
        z += _sinusoid(t[:, None] * frequency[None, :], channel % 2)
    return z


@triton.jit
def _sinusoid(angle, is_cosine):
    """(t, d) sine in channels where ``is_cosine`` (d,) is 0, cosine where it is 1.

    With n half turns taken off, what remains lies in +-pi / 2, and a polynomial gives
    its sine to 1.1e-7. Pi is split into parts so short that their products with up to
    2^14 half turns, or with half of one more, are exact.
    """
    quarter = 0.5 * is_cosine.to(tl.float32)[None, :]
    n = tl.floor(angle * 0.3183098861837907 + quarter + 0.5)
    half_turns = n - quarter
    r = angle - half_turns * 3.140625
    r = r - half_turns * 0.0009670257568359375
    r = r - half_turns * 6.27832957e-7
    q = r * r
    p = 2.5997516e-6 * q - 1.9806479e-4
    p = (p * q + 8.3330154e-3) * q - 1.6666657e-1
    return (r + r * q * p) * (1.0 - 2.0 * (n - 2.0 * tl.floor(0.5 * n)))


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
