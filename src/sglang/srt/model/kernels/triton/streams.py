"""Ops of decoders with several residual streams: one program per row, which goes over its columns block by block in one order."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import round_to


@triton.jit
def scale_kernel(x, rows, width, stride, by, BLOCK: tl.constexpr):
    """ops.scale."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * stride + at, round_to(values * by, x.dtype.element_ty), mask=inside)


@triton.jit
def match_rms_kernel(x, like, rows, width, x_stride, like_stride, BLOCK: tl.constexpr):
    """ops.match_rms."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    own, other = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        b = tl.load(like + row * like_stride + at, mask=at < width, other=0.0).to(tl.float32)
        own += a * a
        other += b * b
    by = tl.sqrt(tl.sum(other) / width) / tl.sqrt(tl.maximum(tl.sum(own) / width, 1e-5))
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(x + row * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        tl.store(x + row * x_stride + at, round_to(a * by, x.dtype.element_ty), mask=at < width)


@triton.jit
def sparsify_kernel(x, rows, width, stride, deviations, BLOCK: tl.constexpr):
    """ops.sparsify."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
    mean = tl.sum(total) / width
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(x + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        away = tl.where(at < width, a - mean, 0.0)
        squares += away * away
    floor = mean + deviations * tl.sqrt(tl.sum(squares) / width)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        a = tl.load(x + row * stride + at, mask=at < width, other=0.0).to(tl.float32)
        tl.store(x + row * stride + at, round_to(tl.maximum(a - floor, 0.0), x.dtype.element_ty), mask=at < width)
