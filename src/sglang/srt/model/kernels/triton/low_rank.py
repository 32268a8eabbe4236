"""What adapters add to linear layers: out += scale * B (A x), tile by tile of rows that have the same adapter (kernels/low_rank.py).

A program computes tiles of a fixed size, so that a row's sums do not depend on the rows beside it.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import dot_add, round_to, wait_for_inputs


@triton.jit
def _tile(slots, starts, order, t, ROWS: tl.constexpr):
    """Slot, rows and which of these exist."""
    begin, end = tl.load(starts + t), tl.load(starts + t + 1)
    at = begin + tl.arange(0, ROWS)
    inside = at < end
    return tl.load(slots + t), tl.load(order + at, mask=inside, other=0).to(tl.int64), inside


@triton.jit
def low_rank_down_kernel(
    x, a, ranks, h, num_tiles, slots, starts, order, k, x_stride, num_parts, max_rank,
    ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """h[row, part] = A x[row] in float32. Grid: tiles, parts, ranges of RANK ranks. a: [slots, parts, max_rank, k]."""
    t, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wait_for_inputs()
    if t >= tl.load(num_tiles):
        return
    slot, rows, inside = _tile(slots, starts, order, t, ROWS)
    rank = tl.load(ranks + slot * num_parts + part)
    if group * RANK >= rank:
        return
    lanes = group * RANK + tl.arange(0, RANK)
    base = a + (slot * num_parts + part).to(tl.int64) * max_rank * k
    acc = tl.zeros((ROWS, RANK), tl.float32)
    for start in range(0, k, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        row_values = tl.load(
            x + rows[:, None] * x_stride + columns[None, :], mask=inside[:, None] & (columns < k)[None, :], other=0.0
        )
        weights = tl.load(
            base + lanes[None, :] * k + columns[:, None], mask=(columns < k)[:, None] & (lanes < rank)[None, :], other=0.0
        )
        acc = dot_add(row_values, weights, acc)
    tl.store(
        h + (rows[:, None] * num_parts + part) * max_rank + lanes[None, :],
        acc,
        mask=inside[:, None] & (lanes < max_rank)[None, :],
    )


@triton.jit
def low_rank_up_kernel(
    h, b, scales, ranks, out, num_tiles, slots, starts, order, first, width, out_stride, part, num_parts, max_rank, b_first, b_rows,
    ROWS: tl.constexpr, RANK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[row, first : first + width] += scale * B h[row, part]. Grid: tiles, ranges of COLUMNS columns. b: [slots, b_rows, max_rank], of
    which the part's rows begin at b_first."""
    t = tl.program_id(0)
    wait_for_inputs()
    if t >= tl.load(num_tiles):
        return
    slot, rows, inside = _tile(slots, starts, order, t, ROWS)
    rank = tl.load(ranks + slot * num_parts + part)
    if rank == 0:
        return
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    base = b + (slot.to(tl.int64) * b_rows + b_first) * max_rank
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rank, RANK):
        lanes = start + tl.arange(0, RANK)
        parts = tl.load(
            h + (rows[:, None] * num_parts + part) * max_rank + lanes[None, :],
            mask=inside[:, None] & (lanes < rank)[None, :],
            other=0.0,
        )
        weights = tl.load(
            base + columns[None, :] * max_rank + lanes[:, None],
            mask=(lanes < rank)[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        acc = dot_add(parts, weights.to(tl.float32), acc)
    acc = acc * tl.load(scales + slot * num_parts + part)
    at = out + rows[:, None] * out_stride + first + columns[None, :]
    mask = inside[:, None] & (columns < width)[None, :]
    before = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, round_to(before + acc, out.dtype.element_ty), mask=mask)
