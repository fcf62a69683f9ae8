"""Triton kernels of causal HyperGLU: the scores of a tile at a time, never of a window.

Queries and keys are taken in tiles of ``BLOCK`` frames. Between row a of a tile of
queries and column c of the tile of keys ``n`` tiles before it, the lag is
``n BLOCK + a - c``, so a pair of tiles meets 2 BLOCK - 1 lags. What belongs to lags, U
and V of the mixings, is multiplied in a layout (BLOCK, 2 BLOCK) whose column m is the
lag ``n BLOCK - BLOCK + 1 + m``; :func:`_to_keys` and :func:`_to_lags` shift the rows
from one layout to the other.

Forward takes a tile of queries of one head and walks over its keys up to three times:
for the row summaries h of the first mixing; for the scores after it and the weighted
sum; for the low-rank part of the second mixing, which needs no scores. Backward makes
the scores again in three kernels, each of which adds up all of what it writes: over
keys for the queries, over queries for keys and values, over pairs of tiles at one
distance for the mixings. Nothing depends on the order that programs run in.

Tensors over frames are (B, frames, heads, width), where the heads may be the ``sets``
of scores: H, or 2H with ``GLU``, of which the last H gate the first. A ``mix`` is
(heads, 2 r + 1, slots): U transposed, V, and the gain; the last slot is lag 0. A rank
of 0 stands for no mixing. ``born`` (B,) is the first key that is there. All arithmetic
is float32; ``PRECISION`` is how the matrix unit multiplies it.

Helpers take ``of``, the (batch, frames, heads) of a tensor, with the batch of the
program; ``shape``, the (width, rows, columns) of its tiles; and a mixing as ``mix``
with its slots and ``ranks``, the shape of its tiles.
"""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    mix1,
    control1,
    mix2,
    control2,
    born,
    out,
    summary1,
    summary2,
    size,
    frames,
    past,
    slots,
    norm_eps,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GLU: tl.constexpr,
    NORMALISED: tl.constexpr,
    HAS_BORN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Outputs (B, T, H, d_v), row summaries h of both mixings, sizes of rows."""
    wide: tl.constexpr = (WIDTH, BLOCK, BLOCK_W)
    deep: tl.constexpr = (VALUE_WIDTH, BLOCK, BLOCK_V)
    ranks1: tl.constexpr = (RANK1, BLOCK, BLOCK_R)
    ranks2: tl.constexpr = (RANK2, BLOCK, BLOCK_R)
    head, heads = tl.program_id(0), tl.num_programs(0)
    gate, sets = head + heads, heads * (1 + GLU)
    row = tl.program_id(1) * BLOCK
    batch = tl.program_id(2).to(tl.int64)
    queries, query_sets = (batch, frames, heads), (batch, frames, sets)
    values, keys = (batch, past + frames, heads), (batch, past + frames, sets)
    first = _first_key(born, batch, HAS_BORN)
    tiles = _tiles_before(past + row, first, slots, BLOCK)

    q1 = _load(q, query_sets, head, row, wide)
    z1 = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    if RANK1:
        h = _summary(
            q1,
            k,
            keys,
            head,
            past + row,
            tiles,
            mix1,
            slots,
            0,
            wide,
            ranks1,
            PRECISION,
        )
        _store(summary1, h, query_sets, head, row, ranks1)
        z1 = h * _load(control1, query_sets, head, row, ranks1)
    q2, z2 = q1, z1
    if GLU:
        q2 = _load(q, query_sets, gate, row, wide)
        if RANK1:
            h = _summary(
                q2,
                k,
                keys,
                gate,
                past + row,
                tiles,
                mix1,
                slots,
                0,
                wide,
                ranks1,
                PRECISION,
            )
            _store(summary1, h, query_sets, gate, row, ranks1)
            z2 = h * _load(control1, query_sets, gate, row, ranks1)

    total = tl.zeros((BLOCK, BLOCK_V), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    h = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    for n in range(0, tiles):
        key = past + row - n * BLOCK
        seen = key + tl.arange(0, BLOCK) >= first
        k1 = _load(k, keys, head, key, wide)
        s = _dot(q1, tl.trans(k1), PRECISION)
        y = _mixed(s, z1, mix1, slots, head, n, seen, ranks1, PRECISION)
        squares += tl.sum(y * y, 1)
        a = tl.maximum(y, 0.0)
        if GLU:
            k2 = _load(k, keys, gate, key, wide)
            s = _dot(q2, tl.trans(k2), PRECISION)
            a *= _softplus(_mixed(s, z2, mix1, slots, gate, n, seen, ranks1, PRECISION))
        if RANK2:
            u = _table(mix2, slots, head, n, 0, ranks2)
            h += _dot(_to_lags(a, BLOCK), tl.trans(u), PRECISION)
            a *= _gain(mix2, slots, head, _lags_of_keys(n, BLOCK), RANK2)
        total += _dot(a, _load(v, values, head, key, deep), PRECISION)
    if RANK2:
        _store(summary2, h, queries, head, row, ranks2)
        z = h * _load(control2, queries, head, row, ranks2)
        total += _spread(
            z,
            v,
            values,
            head,
            past + row,
            tiles,
            mix2,
            slots,
            RANK2,
            deep,
            ranks2,
            PRECISION,
        )
    if NORMALISED:
        length = tl.sqrt(squares)
        total /= tl.maximum(length, norm_eps)[:, None]
        at, inside = _column(queries, head, row, BLOCK)
        tl.store(size + at, length, mask=inside)
    _store(out, total, queries, head, row, deep)


@triton.jit
def backward_queries_kernel(
    q,
    k,
    v,
    mix1,
    control1,
    mix2,
    control2,
    born,
    summary1,
    summary2,
    grad,
    pull,
    grad_q,
    grad_control1,
    grad_control2,
    grad_summary1,
    grad_summary2,
    frames,
    past,
    slots,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GLU: tl.constexpr,
    NORMALISED: tl.constexpr,
    HAS_BORN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Gradients of what belongs to queries: q, the controls and the row summaries.

    ``grad`` is that of the outputs before their division; ``pull`` (B, T, H) is how
    much of each score of a row the row's size takes from the gradient of that score.
    """
    wide: tl.constexpr = (WIDTH, BLOCK, BLOCK_W)
    deep: tl.constexpr = (VALUE_WIDTH, BLOCK, BLOCK_V)
    ranks1: tl.constexpr = (RANK1, BLOCK, BLOCK_R)
    ranks2: tl.constexpr = (RANK2, BLOCK, BLOCK_R)
    head, heads = tl.program_id(0), tl.num_programs(0)
    gate, sets = head + heads, heads * (1 + GLU)
    row = tl.program_id(1) * BLOCK
    batch = tl.program_id(2).to(tl.int64)
    queries, query_sets = (batch, frames, heads), (batch, frames, sets)
    values, keys = (batch, past + frames, heads), (batch, past + frames, sets)
    first = _first_key(born, batch, HAS_BORN)
    tiles = _tiles_before(past + row, first, slots, BLOCK)

    g = _load(grad, queries, head, row, deep)
    p = _pull(pull, queries, head, row, NORMALISED, BLOCK)
    q1 = _load(q, query_sets, head, row, wide)
    z1 = _factors(summary1, control1, query_sets, head, row, ranks1)
    grad_q1 = tl.zeros((BLOCK, BLOCK_W), tl.float32)
    grad_z1 = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    if GLU:
        q2 = _load(q, query_sets, gate, row, wide)
        z2 = _factors(summary1, control1, query_sets, gate, row, ranks1)
        grad_q2 = tl.zeros((BLOCK, BLOCK_W), tl.float32)
        grad_z2 = tl.zeros((BLOCK, BLOCK_R), tl.float32)
    if RANK2:
        grad_z = _summary(
            g,
            v,
            values,
            head,
            past + row,
            tiles,
            mix2,
            slots,
            RANK2,
            deep,
            ranks2,
            PRECISION,
        )
        c = grad_z * _load(summary2, queries, head, row, ranks2)
        _store(grad_control2, c, queries, head, row, ranks2)
        grad_h = grad_z * _load(control2, queries, head, row, ranks2)
        _store(grad_summary2, grad_h, queries, head, row, ranks2)

    for n in range(0, tiles):
        key = past + row - n * BLOCK
        seen = key + tl.arange(0, BLOCK) >= first
        lag = _lags_of_keys(n, BLOCK)
        k1 = _load(k, keys, head, key, wide)
        s = _dot(q1, tl.trans(k1), PRECISION)
        y1 = _mixed(s, z1, mix1, slots, head, n, seen, ranks1, PRECISION)
        y2 = y1
        if GLU:
            k2 = _load(k, keys, gate, key, wide)
            s = _dot(q2, tl.trans(k2), PRECISION)
            y2 = _mixed(s, z2, mix1, slots, gate, n, seen, ranks1, PRECISION)
        grad_a = _dot(g, tl.trans(_load(v, values, head, key, deep)), PRECISION)
        if RANK2:
            u = _table(mix2, slots, head, n, 0, ranks2)
            grad_a *= _gain(mix2, slots, head, lag, RANK2)
            grad_a += _to_keys(_dot(grad_h, u, PRECISION), BLOCK)
        grad_y1, grad_y2 = _through_rectifier(y1, y2, grad_a, p, GLU)
        if RANK1:
            u = _table(mix1, slots, head, n, RANK1, ranks1)
            grad_z1 += _dot(_to_lags(grad_y1, BLOCK), tl.trans(u), PRECISION)
            grad_y1 *= _gain(mix1, slots, head, lag, RANK1)
            if GLU:
                u = _table(mix1, slots, gate, n, RANK1, ranks1)
                grad_z2 += _dot(_to_lags(grad_y2, BLOCK), tl.trans(u), PRECISION)
                grad_y2 *= _gain(mix1, slots, gate, lag, RANK1)
        grad_q1 += _dot(grad_y1, k1, PRECISION)
        if GLU:
            grad_q2 += _dot(grad_y2, k2, PRECISION)
    if RANK1:
        c = grad_z1 * _load(summary1, query_sets, head, row, ranks1)
        _store(grad_control1, c, query_sets, head, row, ranks1)
        grad_z1 *= _load(control1, query_sets, head, row, ranks1)
        _store(grad_summary1, grad_z1, query_sets, head, row, ranks1)
        grad_q1 += _spread(
            grad_z1,
            k,
            keys,
            head,
            past + row,
            tiles,
            mix1,
            slots,
            0,
            wide,
            ranks1,
            PRECISION,
        )
        if GLU:
            c = grad_z2 * _load(summary1, query_sets, gate, row, ranks1)
            _store(grad_control1, c, query_sets, gate, row, ranks1)
            grad_z2 *= _load(control1, query_sets, gate, row, ranks1)
            _store(grad_summary1, grad_z2, query_sets, gate, row, ranks1)
            grad_q2 += _spread(
                grad_z2,
                k,
                keys,
                gate,
                past + row,
                tiles,
                mix1,
                slots,
                0,
                wide,
                ranks1,
                PRECISION,
            )
    _store(grad_q, grad_q1, query_sets, head, row, wide)
    if GLU:
        _store(grad_q, grad_q2, query_sets, gate, row, wide)


@triton.jit
def backward_keys_kernel(
    q,
    k,
    v,
    mix1,
    control1,
    mix2,
    control2,
    born,
    summary1,
    summary2,
    grad,
    pull,
    grad_summary1,
    grad_summary2,
    grad_k,
    grad_v,
    frames,
    past,
    slots,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GLU: tl.constexpr,
    NORMALISED: tl.constexpr,
    HAS_BORN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Gradients of a tile of keys and values, 0 before the first key."""
    wide: tl.constexpr = (WIDTH, BLOCK, BLOCK_W)
    deep: tl.constexpr = (VALUE_WIDTH, BLOCK, BLOCK_V)
    ranks1: tl.constexpr = (RANK1, BLOCK, BLOCK_R)
    ranks2: tl.constexpr = (RANK2, BLOCK, BLOCK_R)
    head, heads = tl.program_id(0), tl.num_programs(0)
    gate, sets = head + heads, heads * (1 + GLU)
    key = tl.program_id(1) * BLOCK
    batch = tl.program_id(2).to(tl.int64)
    queries, query_sets = (batch, frames, heads), (batch, frames, sets)
    values, keys = (batch, past + frames, heads), (batch, past + frames, sets)
    seen = key + tl.arange(0, BLOCK) >= _first_key(born, batch, HAS_BORN)

    k1 = _load(k, keys, head, key, wide)
    w = _load(v, values, head, key, deep)
    grad_k1 = tl.zeros((BLOCK, BLOCK_W), tl.float32)
    grad_w = tl.zeros((BLOCK, BLOCK_V), tl.float32)
    if GLU:
        k2 = _load(k, keys, gate, key, wide)
        grad_k2 = tl.zeros((BLOCK, BLOCK_W), tl.float32)
    # Tiles of queries, from the first that holds any to the last that sees the keys.
    start = tl.maximum(past - key, 0) // BLOCK
    end = tl.minimum(
        tl.cdiv(slots + BLOCK - 1, BLOCK), tl.cdiv(past + frames - key, BLOCK)
    )
    for n in range(start, end):
        row = key - past + n * BLOCK
        q1 = _load(q, query_sets, head, row, wide)
        s = _dot(q1, tl.trans(k1), PRECISION)
        z = _factors(summary1, control1, query_sets, head, row, ranks1)
        y1 = _mixed(s, z, mix1, slots, head, n, seen, ranks1, PRECISION)
        y2 = y1
        a = tl.maximum(y1, 0.0)
        if GLU:
            q2 = _load(q, query_sets, gate, row, wide)
            s = _dot(q2, tl.trans(k2), PRECISION)
            z = _factors(summary1, control1, query_sets, gate, row, ranks1)
            y2 = _mixed(s, z, mix1, slots, gate, n, seen, ranks1, PRECISION)
            a *= _softplus(y2)
        g = _load(grad, queries, head, row, deep)
        grad_a = _dot(g, tl.trans(w), PRECISION)
        if RANK2:
            gain = _gain(mix2, slots, head, _lags_of_keys(n, BLOCK), RANK2)
            z = _factors(summary2, control2, queries, head, row, ranks2)
            u = _table(mix2, slots, head, n, RANK2, ranks2)
            a = a * gain + _to_keys(_dot(z, u, PRECISION), BLOCK)
            h = _load(grad_summary2, queries, head, row, ranks2)
            u = _table(mix2, slots, head, n, 0, ranks2)
            grad_a = grad_a * gain + _to_keys(_dot(h, u, PRECISION), BLOCK)
        grad_w += _dot(tl.trans(a), g, PRECISION)
        p = _pull(pull, queries, head, row, NORMALISED, BLOCK)
        grad_1, grad_2 = _through_rectifier(y1, y2, grad_a, p, GLU)
        if RANK1:
            h = _load(grad_summary1, query_sets, head, row, ranks1)
            grad_1 = _through_mix(grad_1, h, mix1, slots, head, n, ranks1, PRECISION)
        grad_k1 += _dot(tl.trans(grad_1), q1, PRECISION)
        if GLU:
            if RANK1:
                h = _load(grad_summary1, query_sets, gate, row, ranks1)
                grad_2 = _through_mix(
                    grad_2, h, mix1, slots, gate, n, ranks1, PRECISION
                )
            grad_k2 += _dot(tl.trans(grad_2), q2, PRECISION)
    seen = seen[:, None]
    _store(grad_v, tl.where(seen, grad_w, 0.0), values, head, key, deep)
    _store(grad_k, tl.where(seen, grad_k1, 0.0), keys, head, key, wide)
    if GLU:
        _store(grad_k, tl.where(seen, grad_k2, 0.0), keys, gate, key, wide)


@triton.jit
def backward_mixes_kernel(
    q,
    k,
    v,
    mix1,
    control1,
    mix2,
    control2,
    born,
    summary1,
    summary2,
    grad,
    pull,
    grad_summary1,
    grad_summary2,
    grad_mix1,
    grad_mix2,
    frames,
    past,
    slots,
    span,
    spans,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    RANK1: tl.constexpr,
    RANK2: tl.constexpr,
    GLU: tl.constexpr,
    NORMALISED: tl.constexpr,
    HAS_BORN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Gradients of both mixings, summed over the pairs of tiles at one distance n.

    Of ``span`` queries each: (B spans, heads, distances, 2 r + 1, 2 BLOCK) in lags.
    """
    wide: tl.constexpr = (WIDTH, BLOCK, BLOCK_W)
    deep: tl.constexpr = (VALUE_WIDTH, BLOCK, BLOCK_V)
    ranks1: tl.constexpr = (RANK1, BLOCK, BLOCK_R)
    ranks2: tl.constexpr = (RANK2, BLOCK, BLOCK_R)
    head, heads = tl.program_id(0), tl.num_programs(0)
    gate, sets = head + heads, heads * (1 + GLU)
    n = tl.program_id(1)
    batch = (tl.program_id(2) // spans).to(tl.int64)
    start = tl.program_id(2) % spans * span
    queries, query_sets = (batch, frames, heads), (batch, frames, sets)
    values, keys = (batch, past + frames, heads), (batch, past + frames, sets)
    first = _first_key(born, batch, HAS_BORN)
    lag = _lags(n, BLOCK)[None, :]
    column = _keys_of_lags(BLOCK)

    grad_u1 = tl.zeros((BLOCK_R, 2 * BLOCK), tl.float32)
    grad_gain1 = tl.zeros((2 * BLOCK,), tl.float32)
    grad_v1, grad_u2, grad_v2, grad_gain2 = grad_u1, grad_u1, grad_u1, grad_gain1
    gate_u, gate_v, gate_gain = grad_u1, grad_u1, grad_gain1
    # From the first tile whose keys are there.
    earliest = tl.maximum(first + (n - 1) * BLOCK - past + 1, 0) // BLOCK * BLOCK
    end = tl.minimum(start + span, frames)
    for row in range(tl.maximum(start, earliest), end, BLOCK):
        key = past + row - n * BLOCK
        # All in lags here: of row a, column m is key a + BLOCK - 1 - m.
        seen = (column >= 0) & (column < BLOCK) & (key + column >= first)
        q1 = _load(q, query_sets, head, row, wide)
        k1 = _load(k, keys, head, key, wide)
        s1 = _to_lags(_dot(q1, tl.trans(k1), PRECISION), BLOCK)
        z1 = _factors(summary1, control1, query_sets, head, row, ranks1)
        y1 = s1 * _gain(mix1, slots, head, lag, RANK1)
        if RANK1:
            u = _table(mix1, slots, head, n, RANK1, ranks1)
            y1 = tl.where(seen, y1 + _dot(z1, u, PRECISION), 0.0)
        y2 = y1
        a = tl.maximum(y1, 0.0)
        if GLU:
            q2 = _load(q, query_sets, gate, row, wide)
            k2 = _load(k, keys, gate, key, wide)
            s2 = _to_lags(_dot(q2, tl.trans(k2), PRECISION), BLOCK)
            z2 = _factors(summary1, control1, query_sets, gate, row, ranks1)
            y2 = s2 * _gain(mix1, slots, gate, lag, RANK1)
            if RANK1:
                u = _table(mix1, slots, gate, n, RANK1, ranks1)
                y2 = tl.where(seen, y2 + _dot(z2, u, PRECISION), 0.0)
            a *= _softplus(y2)
        g = _load(grad, queries, head, row, deep)
        w = _load(v, values, head, key, deep)
        grad_a = _to_lags(_dot(g, tl.trans(w), PRECISION), BLOCK)
        if RANK2:
            z = _factors(summary2, control2, queries, head, row, ranks2)
            h = _load(grad_summary2, queries, head, row, ranks2)
            grad_u2 += _dot(tl.trans(h), a, PRECISION)
            grad_v2 += _dot(tl.trans(z), grad_a, PRECISION)
            grad_gain2 += tl.sum(a * grad_a, 0)
            u = _table(mix2, slots, head, n, 0, ranks2)
            grad_a *= _gain(mix2, slots, head, lag, RANK2)
            grad_a += _dot(h, u, PRECISION)
        if RANK1:
            p = _pull(pull, queries, head, row, NORMALISED, BLOCK)
            grad_1, grad_2 = _through_rectifier(y1, y2, grad_a, p, GLU)
            h = _load(grad_summary1, query_sets, head, row, ranks1)
            grad_u1 += _dot(tl.trans(h), s1, PRECISION)
            grad_v1 += _dot(tl.trans(z1), grad_1, PRECISION)
            grad_gain1 += tl.sum(grad_1 * s1, 0)
            if GLU:
                h = _load(grad_summary1, query_sets, gate, row, ranks1)
                gate_u += _dot(tl.trans(h), s2, PRECISION)
                gate_v += _dot(tl.trans(z2), grad_2, PRECISION)
                gate_gain += tl.sum(grad_2 * s2, 0)
    if RANK1:
        _store_mix(grad_mix1, grad_u1, grad_v1, grad_gain1, sets, head, n, ranks1)
        if GLU:
            _store_mix(grad_mix1, gate_u, gate_v, gate_gain, sets, gate, n, ranks1)
    if RANK2:
        _store_mix(grad_mix2, grad_u2, grad_v2, grad_gain2, heads, head, n, ranks2)


@triton.jit
def _summary(
    q,
    k,
    of,
    head,
    position,
    tiles,
    mix,
    slots,
    ROW: tl.constexpr,
    shape: tl.constexpr,
    ranks: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """h (rows, r): sum_j (q_i . k_j) U[l, r], for the r rows of ``mix`` from ROW."""
    h = tl.zeros((ranks[1], ranks[2]), tl.float32)
    for n in range(0, tiles):
        tile = _load(k, of, head, position - n * ranks[1], shape)
        s = _dot(q, tl.trans(tile), PRECISION)
        u = _table(mix, slots, head, n, ROW, ranks)
        h += _dot(_to_lags(s, ranks[1]), tl.trans(u), PRECISION)
    return h


@triton.jit
def _spread(
    z,
    v,
    of,
    head,
    position,
    tiles,
    mix,
    slots,
    ROW: tl.constexpr,
    shape: tl.constexpr,
    ranks: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(rows, d): sum_j (z_i . V[:, l]) v_j, for the r rows of ``mix`` from ROW."""
    total = tl.zeros((shape[1], shape[2]), tl.float32)
    for n in range(0, tiles):
        u = _table(mix, slots, head, n, ROW, ranks)
        a = _to_keys(_dot(z, u, PRECISION), ranks[1])
        tile = _load(v, of, head, position - n * ranks[1], shape)
        total += _dot(a, tile, PRECISION)
    return total


@triton.jit
def _mixed(
    s,
    z,
    mix,
    slots,
    head,
    n,
    seen,
    ranks: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores (rows, keys) after the first mixing, 0 outside of the window."""
    y = s * _gain(mix, slots, head, _lags_of_keys(n, ranks[1]), ranks[0])
    if ranks[0]:
        u = _table(mix, slots, head, n, ranks[0], ranks)
        y = tl.where(seen[None, :], y + _to_keys(_dot(z, u, PRECISION), ranks[1]), 0.0)
    return y


@triton.jit
def _through_mix(
    grad,
    grad_h,
    mix,
    slots,
    head,
    n,
    ranks: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of scores from that of the mixed ones and of the row summaries."""
    u = _table(mix, slots, head, n, 0, ranks)
    gain = _gain(mix, slots, head, _lags_of_keys(n, ranks[1]), ranks[0])
    return grad * gain + _to_keys(_dot(grad_h, u, PRECISION), ranks[1])


@triton.jit
def _through_rectifier(y1, y2, grad_a, pull, GLU: tl.constexpr):
    """The gradients of both sets of mixed scores; without ``GLU`` the first counts."""
    grad_1 = tl.where(y1 > 0, grad_a, 0.0)
    grad_2 = grad_1
    if GLU:
        grad_2 = grad_1 * y1 * tl.sigmoid(y2)
        grad_1 *= _softplus(y2)
    return grad_1 - pull[:, None] * y1, grad_2


@triton.jit
def _softplus(x):
    """log(1 + exp(x))."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """A matrix product in float32."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _first_key(born, batch, HAS_BORN: tl.constexpr):
    """The first key that is there."""
    first = 0
    if HAS_BORN:
        first = tl.load(born + batch).to(tl.int32)
    return first


@triton.jit
def _tiles_before(position, first, slots, BLOCK: tl.constexpr):
    """How many tiles of keys the queries from ``position`` on see, their own too."""
    window = tl.cdiv(slots + BLOCK - 1, BLOCK)
    return tl.minimum(window, (position + BLOCK - 1 - first) // BLOCK + 1)


@triton.jit
def _lags(n, BLOCK: tl.constexpr):
    """The lags (2 BLOCK,) that two tiles n apart meet, and one that they do not."""
    return (n - 1) * BLOCK + 1 + tl.arange(0, 2 * BLOCK)


@triton.jit
def _lags_of_keys(n, BLOCK: tl.constexpr):
    """The lag (BLOCK, BLOCK) of each row and key."""
    t = tl.arange(0, BLOCK)
    return n * BLOCK + t[:, None] - t[None, :]


@triton.jit
def _keys_of_lags(BLOCK: tl.constexpr):
    """The column of the key (BLOCK, 2 BLOCK) of each row and lag, or one outside."""
    return (tl.arange(0, BLOCK) + BLOCK - 1)[:, None] - tl.arange(0, 2 * BLOCK)[None, :]


@triton.jit
def _to_keys(x, BLOCK: tl.constexpr):
    """Rows over lags (BLOCK, 2 BLOCK) as rows over keys (BLOCK, BLOCK)."""
    return tl.gather(x, _lags_of_keys(0, BLOCK) + BLOCK - 1, 1)


@triton.jit
def _to_lags(x, BLOCK: tl.constexpr):
    """Rows over keys (BLOCK, BLOCK) as rows over lags, 0 where the tile has no key."""
    column = _keys_of_lags(BLOCK)
    inside = (column >= 0) & (column < BLOCK)
    return tl.where(inside, tl.gather(x, tl.where(inside, column, 0), 1), 0.0)


@triton.jit
def _tile(of, head, first, shape: tl.constexpr):
    """Where the frames from ``first`` on of one head stand, and which there are."""
    t = first + tl.arange(0, shape[1])
    d = tl.arange(0, shape[2])
    at = ((of[0] * of[1] + t) * of[2] + head) * shape[0]
    inside = ((t >= 0) & (t < of[1]))[:, None] & (d < shape[0])[None, :]
    return at[:, None] + d[None, :], inside


@triton.jit
def _load(tensor, of, head, first, shape: tl.constexpr):
    """A tile of frames in float32, 0 where there are none."""
    at, inside = _tile(of, head, first, shape)
    return tl.load(tensor + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(tensor, x, of, head, first, shape: tl.constexpr):
    """Write a tile of frames."""
    at, inside = _tile(of, head, first, shape)
    tl.store(tensor + at, x.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
def _factors(summary, control, of, head, first, ranks: tl.constexpr):
    """z (rows, r): row summaries times what each row chooses for itself."""
    z = tl.zeros((ranks[1], ranks[2]), tl.float32)
    if ranks[0]:
        z = _load(summary, of, head, first, ranks)
        z *= _load(control, of, head, first, ranks)
    return z


@triton.jit
def _column(of, head, first, BLOCK: tl.constexpr):
    """Where the numbers (rows,) of one head stand, and which there are."""
    t = first + tl.arange(0, BLOCK)
    return (of[0] * of[1] + t) * of[2] + head, (t >= 0) & (t < of[1])


@triton.jit
def _pull(pull, of, head, first, NORMALISED: tl.constexpr, BLOCK: tl.constexpr):
    """What the sizes of rows (rows,) take, 0 where they divide nothing."""
    p = tl.zeros((BLOCK,), tl.float32)
    if NORMALISED:
        at, inside = _column(of, head, first, BLOCK)
        p = tl.load(pull + at, mask=inside, other=0.0)
    return p


@triton.jit
def _table(mix, slots, head, n, ROW: tl.constexpr, ranks: tl.constexpr):
    """The r rows of a mixing from ROW on, in the lags of two tiles: (r, 2 BLOCK)."""
    lag = _lags(n, ranks[1])
    r = tl.arange(0, ranks[2])
    rows = (head * (2 * ranks[0] + 1) + ROW + r) * slots
    inside = (r < ranks[0])[:, None] & ((lag >= 0) & (lag < slots))[None, :]
    at = rows[:, None] + (slots - 1 - lag)[None, :]
    return tl.load(mix + at, mask=inside, other=0.0)


@triton.jit
def _gain(mix, slots, head, lag, RANK: tl.constexpr):
    """What scores at these lags are multiplied by: 0 outside of the window."""
    inside = (lag >= 0) & (lag < slots)
    gain = inside.to(tl.float32)
    if RANK:
        at = (head * (2 * RANK + 1) + 2 * RANK) * slots + slots - 1 - lag
        gain = tl.load(mix + at, mask=inside, other=0.0)
    return gain


@triton.jit
def _store_mix(grad, u, v, gain, heads, head, n, ranks: tl.constexpr):
    """Write this program's part of the gradient of a mixing."""
    part = (tl.program_id(2).to(tl.int64) * heads + head) * tl.num_programs(1) + n
    m = tl.arange(0, 2 * ranks[1])
    r = tl.arange(0, ranks[2])
    grad += part * (2 * ranks[0] + 1) * 2 * ranks[1]
    at = r[:, None] * 2 * ranks[1] + m[None, :]
    inside = (r < ranks[0])[:, None] & (m >= 0)[None, :]
    tl.store(grad + at, u, mask=inside)
    tl.store(grad + ranks[0] * 2 * ranks[1] + at, v, mask=inside)
    tl.store(grad + 2 * ranks[0] * 2 * ranks[1] + m, gain)
