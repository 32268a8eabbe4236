"""RMS norm and layer norm with the residual addition before them: one program per row, the row in registers.

A row is summed by a tree over its padded width, which does not depend on other rows.
"""

# Kernels are in Triton's language, where arguments have no types of Python:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

from sglang.srt.model.kernels.triton.common import round_to, wait_for_inputs


@triton.jit
def rms_norm_kernel(
    x, weight, out, delta, row_idx, rows, width, x_stride, out_stride, delta_stride, eps,
    HAS_DELTA: tl.constexpr, HAS_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.rms_norm. With an index x is left alone, since a row may be named twice."""
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.load(rows)
    source = row
    if HAS_INDEX:
        source = tl.load(row_idx + row).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    scale = tl.load(weight + at, mask=inside, other=0.0)
    wait_for_inputs()
    if row >= num_rows:
        return
    values = tl.load(x + source * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        values += tl.load(delta + source * delta_stride + at, mask=inside, other=0.0).to(tl.float32)
        if not HAS_INDEX:
            tl.store(x + source * x_stride + at, round_to(values, x.dtype.element_ty), mask=inside)
    mean = tl.sum(values * values, axis=0) / width
    tl.store(out + row * out_stride + at, round_to(values / tl.sqrt(mean + eps) * scale, out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_kernel(
    x, weight, bias, out, delta, rows, width, x_stride, out_stride, delta_stride, eps,
    HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ops.layer_norm."""
    row = tl.program_id(0).to(tl.int64)
    if row >= tl.load(rows):
        return
    at = tl.arange(0, BLOCK)
    inside = at < width
    values = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        values += tl.load(delta + row * delta_stride + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(x + row * x_stride + at, round_to(values, x.dtype.element_ty), mask=inside)
    centred = tl.where(inside, values - tl.sum(values, axis=0) / width, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    scale = tl.load(weight + at, mask=inside, other=0.0)
    shift = tl.load(bias + at, mask=inside, other=0.0)
    result = centred / tl.sqrt(variance + eps) * scale + shift
    tl.store(out + row * out_stride + at, round_to(result, out.dtype.element_ty), mask=inside)
