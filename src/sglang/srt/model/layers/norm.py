"""Norms, with the residual addition that precedes them: root mean square (arXiv 1910.07467) and layer norm (arXiv 1607.06450)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sglang.srt.model.kernels.ops import Activation, Array, Ops
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig


class Norm(Protocol):
    """`__call__` adds `delta` to x first, in place, if it is given."""

    def __call__(self, x: Array, out: Array | Activation, rows: Array, *, delta: Array | None = None) -> None: ...


class RMSNorm:
    """`scale` multiplies the weights."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, eps: float, scale: float = 1.0) -> None:
        self.ops = ops
        self.weight = ops.array(source.vector(f"{name}.weight") * np.float32(scale))
        self.eps = eps

    def __call__(self, x: Array, out: Array | Activation, rows: Array, *, delta: Array | None = None) -> None:
        self.ops.rms_norm(x, self.weight, out, rows, eps=self.eps, delta=delta)


class LayerNorm:
    """Without weights in the file, they are 1; without biases, 0."""

    def __init__(self, ops: Ops, source: WeightSource, name: str, eps: float, width: int, scale: float = 1.0) -> None:
        def vector(kind: str, default: float) -> Array:
            at = f"{name}.{kind}"
            values = source.vector(at) if source.has(at) else np.full(width, default, np.float32)
            return ops.array(values * np.float32(scale))

        self.ops = ops
        self.weight, self.bias = vector("weight", 1.0), vector("bias", 0.0)
        self.eps = eps

    def __call__(self, x: Array, out: Array | Activation, rows: Array, *, delta: Array | None = None) -> None:
        self.ops.layer_norm(x, self.weight, self.bias, out, rows, eps=self.eps, delta=delta)


def create_norm(
    ops: Ops, source: WeightSource, name: str, config: ModelConfig, eps: float | None = None, scale: float = 1.0
) -> Norm:
    """A norm of the family's kind over rows of the hidden size, with the eps of norms of x if none is given."""
    eps = config.stream_eps if eps is None else eps
    if config.norm == "layer":
        return LayerNorm(ops, source, name, eps, config.hidden_size, scale)
    return RMSNorm(ops, source, name, eps, scale)
