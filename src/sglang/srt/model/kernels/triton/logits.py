"""Ops on logits, [n, vocab] float32: penalties and bias, masks, the best token, sums. Results are batch-invariant."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def adjust_kernel(x, indptr, ids, scale, bias, vocab, stride, BLOCK: tl.constexpr):
    """ops.adjust. ids of a row are distinct; those that are no columns are left out."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    for start in range(begin, end, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < end
        column = tl.load(ids + j, mask=inside, other=0)
        inside = inside & (column >= 0) & (column < vocab)
        at = x + row * stride + column
        value = tl.load(at, mask=inside, other=0.0)
        factor = tl.load(scale + j, mask=inside, other=1.0)
        value = tl.where(value > 0, value / factor, value * factor) + tl.load(bias + j, mask=inside, other=0.0)
        tl.store(at, value, mask=inside)


@triton.jit
def mask_kernel(x, row_idx, bits, vocab, words, stride, BLOCK: tl.constexpr):
    """ops.mask. bits: int32 words holding what uint32 words held. Grid: (masks, blocks of the vocabulary)."""
    i = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits + i * words + at // 32, mask=at // 32 < words, other=0)
    forbidden = ((word >> (at % 32)) & 1) == 0
    row = tl.load(row_idx + i).to(tl.int64)
    tl.store(x + row * stride + at, tl.full([BLOCK], float("-inf"), tl.float32), mask=forbidden & (at < vocab))


@triton.jit
def argmax_parts_kernel(x, values, ids, vocab, stride, BLOCK: tl.constexpr):
    """The largest value of each part of BLOCK columns and its lowest id, -1 if one is NaN, [rows, parts]. Grid: (rows,
    parts)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + at, mask=at < vocab, other=float("-inf"))
    broken = tl.max((value != value).to(tl.int32), axis=0)
    value = tl.where(value != value, float("-inf"), value)
    top = tl.max(value, axis=0)
    first = tl.min(tl.where(value == top, at, vocab), axis=0)
    to = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(values + to, top)
    tl.store(ids + to, tl.where(broken > 0, -1, first))


@triton.jit
def argmax_kernel(values, ids, out, parts, PARTS: tl.constexpr):
    """ops.argmax from the parts."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PARTS)
    value = tl.load(values + row * parts + at, mask=at < parts, other=float("-inf"))
    where = tl.load(ids + row * parts + at, mask=at < parts, other=2147483647)
    first = tl.min(tl.where(value == tl.max(value, axis=0), where, 2147483647), axis=0)
    tl.store(out + row, tl.where(tl.min(where, axis=0) < 0, -1, first))


@triton.jit
def log_sum_exp_kernel(x, out, vocab, stride, BLOCK: tl.constexpr):
    """ops.log_sum_exp: the maximum first, then the sum."""
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    broken = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * stride + at, mask=at < vocab, other=float("-inf"))
        broken = broken | (value != value).to(tl.int32)
        best = tl.maximum(best, tl.where(value != value, float("-inf"), value))
    top = tl.max(best, axis=0)
    finite = tl.where((top == float("-inf")) | (top == float("inf")), 0.0, top)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(x + row * stride + at, mask=at < vocab, other=float("-inf")) - finite)
    result = tl.where(top == finite, finite + tl.log(tl.sum(total, axis=0)), top)
    tl.store(out + row, tl.where(tl.max(broken, axis=0) > 0, float("nan"), result))


@triton.jit
def pick_kernel(x, row_idx, ids, out, count, stride, BLOCK: tl.constexpr):
    """ops.pick."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = j < count
    row = tl.load(row_idx + j, mask=inside, other=0).to(tl.int64)
    column = tl.load(ids + j, mask=inside, other=0)
    tl.store(out + j, tl.load(x + row * stride + column, mask=inside, other=0.0), mask=inside)
