"""Root mean square norm (arXiv 1910.07467), with the residual addition that precedes it."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Activation, Array, Ops
from sglang.srt.model.layers.source import WeightSource


class RMSNorm:
    """`__call__` adds `delta` to x first, in place, if it is given."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, eps: float) -> None:
        self.ops = ops
        self.weight = ops.array(source.vector(f"{name}.weight"))
        self.eps = eps

    def __call__(
        self,
        x: Array,
        out: Array | Activation,
        rows: Array,
        *,
        delta: Array | None = None,
        row_idx: Array | None = None,
    ) -> None:
        self.ops.rms_norm(x, self.weight, out, rows, eps=self.eps, delta=delta, row_idx=row_idx)
