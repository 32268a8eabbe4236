"""The CUDA side of ops on several residual streams. `n`: the most rows there may be."""

from __future__ import annotations

import triton
from torch import Tensor

from sglang.srt.model.kernels.triton import streams as kernels

COLUMNS = 1024


def scale(x: Tensor, rows: Tensor, n: int, by: float) -> None:
    width = x.shape[1]
    if n:
        kernels.scale_kernel[(n, triton.cdiv(width, COLUMNS))](x, rows, width, x.stride(0), by, COLUMNS)


def match_rms(x: Tensor, like: Tensor, rows: Tensor, n: int) -> None:
    if n:
        kernels.match_rms_kernel[(n,)](x, like, rows, x.shape[1], x.stride(0), like.stride(0), COLUMNS)


def sparsify(x: Tensor, rows: Tensor, n: int, deviations: float) -> None:
    if n:
        kernels.sparsify_kernel[(n,)](x, rows, x.shape[1], x.stride(0), deviations, COLUMNS)
