"""Paged attention over slots of the KV pool, [num_kv_heads, num_slots, head_dim] for K and for V.

KV is cut at absolute positions: chunks of CHUNK keys, spans of SPAN chunks. A chunk gives each row a maximum m (in base 2), a sum z
and a weighted sum acc of V; chunks are folded in ascending order into their span, spans in ascending order into the result:

    chunk 0  1  2 ... 7 | 8  9 ... 15 | 16 ...        fold(a, b): m = max(ma, mb); z = za 2^(ma-m) + zb 2^(mb-m); acc likewise
        \\_fold in order_/ \\___________/
              span 0   --fold-->  span 1  --fold--> ...

An empty state (m = -inf, z = acc = 0) folded in changes no bit, so it does not matter who does which part. Decode uses that: a work
item is one chunk when there are few requests, one span when there are many, a whole request when the buffer for partial
results would not do, and the bits are the same. Which of these is decided on the device from the lengths, so one captured launch
serves every batch.

A request is decoded if it has one new row, extended if it has more. Rows of a tile are the heads of a group times positions: row m
is head m % GROUP of position m // GROUP.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import LOG2E, dot, dot_add, round_to, tanh, wait_for_inputs


@triton.jit
def _fold(m, z, acc, m2, z2, acc2):
    """(m, z, acc) followed by (m2, z2, acc2). m, z: [R]; acc: [R, D]. Products are rounded before the fused addition, so that every
    kernel that folds rounds alike."""
    top = tl.maximum(m, m2)
    safe = tl.where(top == float("-inf"), 0.0, top)
    a = tl.exp2(m - safe)
    b = tl.exp2(m2 - safe)
    wide_a = tl.broadcast_to(a[:, None], acc.shape)
    wide_b = tl.broadcast_to(b[:, None], acc.shape)
    return top, tl.fma(z, a, z2 * b), tl.fma(acc, wide_a, acc2 * wide_b)


@triton.jit
def _scores(q, k, SOFT_CAP: tl.constexpr, soft_cap):
    """Scores times log2(e)."""
    s = dot(q, k)
    if SOFT_CAP:
        s = soft_cap * tanh(s / soft_cap)
    return s * LOG2E


@triton.jit
def _weigh(s, v):
    """(m, z, acc) of one chunk's scores. s: [R, C], -inf where a key is not seen; v: [C, D]."""
    m = tl.max(s, axis=1)
    p = tl.exp2(s - tl.where(m == float("-inf"), 0.0, m)[:, None])
    return m, tl.sum(p, axis=1), dot(round_to(p, v.dtype), v)


@triton.jit
def _load_chunk(
    k_pool, v_pool, table, start, seq_len, dim_at, head_dim, CHUNK: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr
):
    """K transposed, [D, C], and V, [C, D], of a chunk's keys, 0 beyond the sequence. `table`: the request's row of slots. WIDE: their places in
    a head's pool need 64 bits, which takes registers."""
    key = start + tl.arange(0, CHUNK)
    there = key < seq_len
    slot = tl.load(table + key, mask=there, other=0)
    if WIDE:
        slot = slot.to(tl.int64)
    slot *= head_dim
    dim_there = dim_at < head_dim
    k = tl.load(k_pool + slot[None, :] + dim_at[:, None], mask=there[None, :] & dim_there[:, None], other=0.0)
    v = tl.load(v_pool + slot[:, None] + dim_at[None, :], mask=there[:, None] & dim_there[None, :], other=0.0)
    return round_to(k, TYPE), round_to(v, TYPE)


@triton.jit
def _decode_plan(
    q_len, seq_lens, num_reqs, num_kv_heads, window, capacity, busy,
    CHUNK: tl.constexpr, MAX_REQS: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Cuts the decoding requests' chunks into work items: (chunks an item has, first item of each request, items of each, items
    in all). The same in every program of both kernels."""
    r = tl.arange(0, MAX_REQS)
    length = tl.load(seq_lens + r, mask=r < num_reqs, other=0)
    decodes = (r < num_reqs) & (tl.load(q_len + r, mask=r < num_reqs, other=0) == 1)
    high = (length + CHUNK - 1) // CHUNK
    low = tl.where(window > 0, tl.maximum(length - window, 0) // CHUNK, 0)
    chunks = tl.where(decodes, high - low, 0)
    spans = tl.where(decodes, (high + SPAN - 1) // SPAN - low // SPAN, 0)
    num_chunks = tl.sum(chunks, axis=0)
    num_spans = tl.sum(spans, axis=0)
    size = 1
    count = chunks
    if (num_spans * num_kv_heads >= busy) | (num_chunks > capacity):
        size = SPAN
        count = spans
        if num_spans > capacity:
            size = 1 << 24
            count = tl.where(decodes, 1, 0)
    end = tl.cumsum(count, axis=0)
    return size, end - count, count, tl.sum(count, axis=0)


@triton.jit
def decode_kernel(
    qkv, k_pool, v_pool, out, partial_acc, partial_ml, sinks, req_pool_idx, q_start, q_len, seq_lens, num_reqs_at, req_to_token,
    qkv_stride, head_stride, table_stride, out_stride, num_kv_heads, head_dim, window, soft_cap, capacity, busy,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, MAX_REQS: tl.constexpr, SPAN: tl.constexpr,
    SINKS: tl.constexpr, SOFT_CAP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Writes the state of every work item, [capacity, num_kv_heads, GROUP, head_dim] and [..., 2], or, where a request is one item,
    its result. Grid: (num_kv_heads, any)."""
    kv_head = tl.program_id(0)
    num_reqs = tl.load(num_reqs_at)
    size, first_item, count, total = _decode_plan(
        q_len, seq_lens, num_reqs, num_kv_heads, window, capacity, busy, CHUNK, MAX_REQS, SPAN
    )
    wait_for_inputs()
    r = tl.arange(0, MAX_REQS)
    g = tl.arange(0, ROWS)
    dim_at = tl.arange(0, BLOCK_D)
    pool_at = kv_head.to(tl.int64) * head_stride
    row_mask = (g < GROUP)[:, None] & (dim_at < head_dim)[None, :]
    for item in range(tl.program_id(1), total, tl.num_programs(1)):
        mine = (first_item <= item) & (item < first_item + count)
        req = tl.sum(tl.where(mine, r, 0), axis=0)
        part = item - tl.sum(tl.where(mine, first_item, 0), axis=0)
        seq_len = tl.load(seq_lens + req)
        begin_key = 0
        if window > 0:
            begin_key = tl.maximum(seq_len - window, 0)
        low = begin_key // CHUNK
        high = (seq_len + CHUNK - 1) // CHUNK
        begin = tl.maximum(low // size * size + part * size, low)
        end = tl.minimum(low // size * size + part * size + size, high)
        row = tl.load(q_start + req).to(tl.int64)
        q_at = qkv + row * qkv_stride + (kv_head * GROUP + g)[:, None] * head_dim + dim_at[None, :]
        q = tl.load(q_at, mask=row_mask, other=0.0)
        table = req_to_token + tl.load(req_pool_idx + req).to(tl.int64) * table_stride
        m = tl.full([ROWS], float("-inf"), tl.float32)
        z = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for span in range(begin // SPAN, (end + SPAN - 1) // SPAN):
            m1 = tl.full([ROWS], float("-inf"), tl.float32)
            z1 = tl.zeros([ROWS], tl.float32)
            acc1 = tl.zeros([ROWS, BLOCK_D], tl.float32)
            for chunk in range(tl.maximum(span * SPAN, begin), tl.minimum(span * SPAN + SPAN, end)):
                start = chunk * CHUNK
                k, v = _load_chunk(
                    k_pool + pool_at, v_pool + pool_at, table, start, seq_len, dim_at, head_dim, CHUNK, WIDE, q.dtype
                )
                key = start + tl.arange(0, CHUNK)
                seen = (key < seq_len) & (key >= begin_key)
                s = tl.where(seen[None, :], _scores(q, k, SOFT_CAP, soft_cap), float("-inf"))
                m2, z2, acc2 = _weigh(s, v)
                m1, z1, acc1 = _fold(m1, z1, acc1, m2, z2, acc2)
            m, z, acc = _fold(m, z, acc, m1, z1, acc1)
        if tl.sum(tl.where(mine, count, 0), axis=0) == 1:
            z = _add_sink(sinks + kv_head * GROUP + g, g < GROUP, m, z, SINKS)
            _finish(out + row * out_stride + kv_head * GROUP * head_dim, z, acc, g, dim_at, head_dim, GROUP)
        else:
            slot = (item * num_kv_heads + kv_head) * GROUP + g
            tl.store(partial_acc + slot[:, None] * head_dim + dim_at[None, :], acc, mask=row_mask)
            tl.store(partial_ml + slot * 2, m, mask=g < GROUP)
            tl.store(partial_ml + slot * 2 + 1, z, mask=g < GROUP)


@triton.jit
def decode_merge_kernel(
    out, partial_acc, partial_ml, sinks, q_start, q_len, seq_lens, num_reqs_at, out_stride, num_kv_heads, head_dim, window, capacity,
    busy, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, MAX_REQS: tl.constexpr, SPAN: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """Folds the items of each request that has several. Grid: (num_kv_heads, bound of requests)."""
    kv_head = tl.program_id(0)
    req = tl.program_id(1)
    num_reqs = tl.load(num_reqs_at)
    size, first_item, count, total = _decode_plan(
        q_len, seq_lens, num_reqs, num_kv_heads, window, capacity, busy, CHUNK, MAX_REQS, SPAN
    )
    r = tl.arange(0, MAX_REQS)
    first = tl.sum(tl.where(r == req, first_item, 0), axis=0)
    num_items = tl.sum(tl.where(r == req, count, 0), axis=0)
    wait_for_inputs()
    if num_items < 2:  # nothing to decode, or decode_kernel has written it
        return
    last = first + num_items
    g = tl.arange(0, ROWS)
    dim_at = tl.arange(0, BLOCK_D)
    begin = first  # where items are chunks, the first span's first chunk, which a window may have left out
    if (size == 1) & (window > 0):
        begin -= tl.maximum(tl.load(seq_lens + req) - window, 0) // CHUNK % SPAN
    m = tl.full([ROWS], float("-inf"), tl.float32)
    z = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for start in range(begin, last, SPAN):
        m1 = m
        z1 = z
        acc1 = acc
        if size == 1:
            m1 = tl.full([ROWS], float("-inf"), tl.float32)
            z1 = tl.zeros([ROWS], tl.float32)
            acc1 = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for j in tl.static_range(SPAN):  # unrolled: all loads are under way before the first is needed
            item = start + j
            there = g < tl.where((item >= first) & (item < last), GROUP, 0)
            slot = (item * num_kv_heads + kv_head) * GROUP + g
            wide = there[:, None] & (dim_at < head_dim)[None, :]
            acc2 = tl.load(partial_acc + slot[:, None] * head_dim + dim_at[None, :], mask=wide, other=0.0)
            m2 = tl.load(partial_ml + slot * 2, mask=there, other=float("-inf"))
            z2 = tl.load(partial_ml + slot * 2 + 1, mask=there, other=0.0)
            m1, z1, acc1 = _fold(m1, z1, acc1, m2, z2, acc2)
        if size == 1:
            m, z, acc = _fold(m, z, acc, m1, z1, acc1)
        else:
            m = m1
            z = z1
            acc = acc1
    row = tl.load(q_start + req).to(tl.int64)
    z = _add_sink(sinks + kv_head * GROUP + g, g < GROUP, m, z, SINKS)
    _finish(out + row * out_stride + kv_head * GROUP * head_dim, z, acc, g, dim_at, head_dim, GROUP)


@triton.jit
def _add_sink(sinks, there, m, z, SINKS: tl.constexpr):
    """z with the sink of each row (ops.attention)."""
    if SINKS:
        sink = tl.load(sinks, mask=there, other=0.0) * LOG2E
        z += tl.where(there & (z > 0), tl.exp2(tl.minimum(sink - m, 126.0)), 0.0)
    return z


@triton.jit
def _finish(out, z, acc, g, dim_at, head_dim, GROUP: tl.constexpr):
    """Writes one group's result."""
    z = tl.where(z > 0, z, 1.0)  # rows that pad the group
    mask = (g < GROUP)[:, None] & (dim_at < head_dim)[None, :]
    tl.store(out + g[:, None] * head_dim + dim_at[None, :], round_to(acc / z[:, None], out.dtype.element_ty), mask=mask)


@triton.jit
def extend_kernel(
    qkv, k_pool, v_pool, out, sinks, req_pool_idx, q_start, q_len, seq_lens, num_reqs_at, req_to_token, row_ends,
    qkv_stride, out_stride, head_stride, table_stride, head_dim, window, soft_cap,
    GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, MAX_REQS: tl.constexpr, SPAN: tl.constexpr,
    SINKS: tl.constexpr, SOFT_CAP: tl.constexpr, WINDOW: tl.constexpr, ROW_ENDS: tl.constexpr, SPANS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Requests with several new rows, POSITIONS = ROWS // GROUP of them in a tile. Grid: (bound of tiles, num_kv_heads). With SPANS
    chunks are folded as decode folds them, without it straight into the result, which takes fewer registers."""
    POSITIONS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(1)
    num_reqs = tl.load(num_reqs_at)
    r = tl.arange(0, MAX_REQS)
    lengths = tl.load(q_len + r, mask=r < num_reqs, other=0)
    tiles = tl.where(lengths > 1, (lengths + POSITIONS - 1) // POSITIONS, 0)
    ends = tl.cumsum(tiles, axis=0)
    total = tl.sum(tiles, axis=0)
    if tl.program_id(0) >= total:
        return
    tile = total - 1 - tl.program_id(0)  # long rows first: they take longest
    mine = (ends - tiles <= tile) & (tile < ends)
    req = tl.sum(tl.where(mine, r, 0), axis=0)
    offset = (tile - tl.sum(tl.where(mine, ends - tiles, 0), axis=0)) * POSITIONS
    num_new = tl.load(q_len + req)
    seq_len = tl.load(seq_lens + req)
    first = seq_len - num_new + offset  # position of the tile's first row

    row_in = tl.arange(0, ROWS)
    local = row_in // GROUP
    there = (local < POSITIONS) & (offset + local < num_new)
    row = (tl.load(q_start + req) + offset + local).to(tl.int64)
    head = kv_head * GROUP + row_in % GROUP
    dim_at = tl.arange(0, BLOCK_D)
    row_mask = there[:, None] & (dim_at < head_dim)[None, :]
    q = tl.load(qkv + row[:, None] * qkv_stride + head[:, None] * head_dim + dim_at[None, :], mask=row_mask, other=0.0)
    position = first + local
    end = tl.where(there, position + 1, 0)
    if ROW_ENDS:
        far = tl.load(row_ends + row, mask=there, other=0)
        end = tl.where(there, tl.minimum(tl.maximum(far, end), seq_len), 0)
    begin = tl.where(position - window + 1 > 0, position - window + 1, 0) if WINDOW else tl.zeros([ROWS], tl.int32)
    high = (tl.max(end, axis=0) + CHUNK - 1) // CHUNK
    low = 0
    if WINDOW:
        low = tl.maximum(first - window + 1, 0) // CHUNK
    clear = (first + 1) // CHUNK  # chunks before this one are seen whole by every row, if there is no window

    pool_at = kv_head.to(tl.int64) * head_stride
    table = req_to_token + tl.load(req_pool_idx + req).to(tl.int64) * table_stride
    m = tl.full([ROWS], float("-inf"), tl.float32)
    z = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    if SPANS:
        m1, z1, acc1 = m, z, acc
        for chunk in range(low, high):
            k, v = _load_chunk(
                k_pool + pool_at, v_pool + pool_at, table, chunk * CHUNK, seq_len, dim_at, head_dim, CHUNK, WIDE, q.dtype
            )
            key = chunk * CHUNK + tl.arange(0, CHUNK)
            seen = (key[None, :] < end[:, None]) & (key[None, :] >= begin[:, None])
            s = tl.where(seen, _scores(q, k, SOFT_CAP, soft_cap), float("-inf"))
            m2, z2, acc2 = _weigh(s, v)
            m1, z1, acc1 = _fold(m1, z1, acc1, m2, z2, acc2)
            if ((chunk + 1) % SPAN == 0) | (chunk == high - 1):
                m, z, acc = _fold(m, z, acc, m1, z1, acc1)
                m1 = tl.full([ROWS], float("-inf"), tl.float32)
                z1 = tl.zeros([ROWS], tl.float32)
                acc1 = tl.zeros([ROWS, BLOCK_D], tl.float32)
    else:
        start = low
        if not WINDOW:
            start = tl.minimum(clear, high)
            for chunk in range(0, start):
                k, v = _load_chunk(
                    k_pool + pool_at, v_pool + pool_at, table, chunk * CHUNK, seq_len, dim_at, head_dim, CHUNK, WIDE, q.dtype
                )
                m, z, acc = _flow(m, z, acc, _scores(q, k, SOFT_CAP, soft_cap), v)
        for chunk in range(start, high):
            k, v = _load_chunk(
                k_pool + pool_at, v_pool + pool_at, table, chunk * CHUNK, seq_len, dim_at, head_dim, CHUNK, WIDE, q.dtype
            )
            key = chunk * CHUNK + tl.arange(0, CHUNK)
            seen = (key[None, :] < end[:, None]) & (key[None, :] >= begin[:, None])
            m, z, acc = _flow(m, z, acc, tl.where(seen, _scores(q, k, SOFT_CAP, soft_cap), float("-inf")), v)
    z = _add_sink(sinks + head, there, m, z, SINKS)
    z = tl.where(z > 0, z, 1.0)  # rows that are not there
    out_at = out + row[:, None] * out_stride + head[:, None] * head_dim + dim_at[None, :]
    tl.store(out_at, round_to(acc / z[:, None], out.dtype.element_ty), mask=row_mask)


@triton.jit
def _flow(m, z, acc, s, v):
    """The state after one more chunk, with the weights taken at the new maximum: one product less than `_weigh` and `_fold`."""
    top = tl.maximum(m, tl.max(s, axis=1))
    safe = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(s - safe[:, None])
    a = tl.exp2(m - safe)
    return top, z * a + tl.sum(p, axis=1), dot_add(round_to(p, v.dtype), v, acc * a[:, None])
