"""Ops on single rows or single elements. Grids are (rows, ranges of columns)."""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import activation, round_to, tanh, wait_for_inputs


@triton.jit
def take_sampled_kernel(ids, previous, sampled, rows, BLOCK: tl.constexpr):
    """ops.take_sampled."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < tl.load(rows)
    source = tl.load(previous + row, mask=inside, other=-1)
    wait_for_inputs()
    taken = tl.load(sampled + source, mask=source >= 0, other=0)
    tl.store(ids + row, tl.maximum(taken, 0), mask=source >= 0)


@triton.jit
def embedding_kernel(table, ids, out, rows, width, table_stride, out_stride, scale, BLOCK: tl.constexpr):
    """ops.embedding over a dense table."""
    row = tl.program_id(0)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if row >= num_rows:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    token = tl.load(ids + row).to(tl.int64)
    values = tl.load(table + token * table_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * out_stride + at, round_to(values * scale, out.dtype.element_ty), mask=inside)


@triton.jit
def embedding_quantized_kernel(
    levels, scales, minima, ids, out, rows, width, out_stride, scale,
    BITS: tl.constexpr, GROUP: tl.constexpr, HAS_MIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.embedding over a table in the layout of linear.quantized_kernel: value = scale * level + minimum."""
    row = tl.program_id(0)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if row >= num_rows:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    token = tl.load(ids + row).to(tl.int64)
    if BITS == 4:
        byte = tl.load(levels + token * (width // 2) + at // 32 * 16 + at % 16, mask=inside, other=0)
        level = tl.where(at % 32 < 16, byte & 15, byte >> 4).to(tl.float32)
    else:
        level = tl.load(levels + token * width + at, mask=inside, other=0).to(tl.float32)
    group = token * (width // GROUP) + at // GROUP
    values = level * tl.load(scales + group, mask=inside, other=0.0).to(tl.float32)
    if HAS_MIN:
        values += tl.load(minima + group, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * out_stride + at, round_to(values * scale, out.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(gate, up, out, rows, width, gate_stride, up_stride, out_stride, FN: tl.constexpr, BLOCK: tl.constexpr):
    """ops.gate."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows)
    wait_for_inputs()
    if row >= num_rows:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    g = tl.load(gate + row * gate_stride + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + at, round_to(activation(g, FN) * u, out.dtype.element_ty), mask=inside)


@triton.jit
def activate_kernel(x, out, rows, width, x_stride, out_stride, FN: tl.constexpr, BLOCK: tl.constexpr):
    """ops.activate; with FN "none" it is ops.store, with conversion to the type of `out`."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if FN != "none":
        values = activation(values, FN)
    tl.store(out + row * out_stride + at, round_to(values, out.dtype.element_ty), mask=inside)


@triton.jit
def soft_cap_kernel(x, rows, width, stride, cap, BLOCK: tl.constexpr):
    """ops.soft_cap."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * stride + at, round_to(cap * tanh(values / cap), x.dtype.element_ty), mask=inside)


@triton.jit
def overlay_kernel(
    x, source, index, rows, width, x_stride, source_stride, ADD: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """ops.overlay; without KEEP it is ops.gather_rows, whose index is never negative."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    taken = tl.load(index + row).to(tl.int64)
    inside = at < (tl.where(taken >= 0, width, 0) if KEEP else width)
    values = tl.load(source + taken * source_stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + row * x_stride + at, round_to(values, x.dtype.element_ty), mask=inside)


@triton.jit
def blend_kernel(x, index, weight, out, rows, k, width, x_stride, weight_stride, out_stride, BLOCK: tl.constexpr):
    """ops.blend_rows."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros([BLOCK], tl.float32)
    for j in range(k):
        taken = tl.load(index + row * k + j).to(tl.int64)
        values = tl.load(x + taken * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weight + row * weight_stride + j).to(tl.float32) * values
    tl.store(out + row * out_stride + at, round_to(total, out.dtype.element_ty), mask=inside)


@triton.jit
def select_rope_kernel(
    cos, sin, positions, axes, out_cos, out_sin, rows, pairs, table_stride, positions_stride, out_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """ops.select_rope."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.arange(0, BLOCK)
    inside = at < pairs
    axis = tl.load(axes + at, mask=inside, other=0).to(tl.int64)
    position = tl.load(positions + axis * positions_stride + row, mask=inside, other=0).to(tl.int64)
    tl.store(out_cos + row * out_stride + at, tl.load(cos + position * table_stride + at, mask=inside, other=0.0), mask=inside)
    tl.store(out_sin + row * out_stride + at, tl.load(sin + position * table_stride + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def rotate_kernel(x, cos, sin, rows, num_heads, head_dim, pairs, x_stride, table_stride, BLOCK: tl.constexpr):
    """ops.rotate: one program per row and head."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.arange(0, BLOCK)
    inside = at < pairs
    first = x + row * x_stride + tl.program_id(1) * head_dim + at
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + pairs, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * table_stride + at, mask=inside, other=0.0)
    s = tl.load(sin + row * table_stride + at, mask=inside, other=0.0)
    # the thread that reads a pair writes it: no one else reads either half
    tl.store(first, round_to(a * c - b * s, x.dtype.element_ty), mask=inside)
    tl.store(first + pairs, round_to(b * c + a * s, x.dtype.element_ty), mask=inside)
