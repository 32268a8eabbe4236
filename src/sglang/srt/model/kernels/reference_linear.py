"""Products of rows and matrices in NumPy, and the functions of feed-forward layers (reference.py says why tiles)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.ops import Gate

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

TILE = 16


class ReferenceWeight:
    """A dense float32 matrix. `row_by_row`: the BLAS does not treat all rows of a tile alike."""

    def __init__(self, values: Float) -> None:
        self.values = np.ascontiguousarray(values, np.float32)  # [out_features, in_features]
        self.out_features, self.in_features = self.values.shape
        self.num_bytes = self.values.nbytes
        self.row_by_row = not _tile_rows_agree(self.values)


class ReferenceActivation:
    """Rows as they are: float32."""

    def __init__(self, max_rows: int, width: int) -> None:
        self.width = width
        self.data = np.zeros((max_rows, width), np.float32)


def _tile_rows_agree(values: Float) -> bool:
    """Whether TILE equal rows give bitwise equal results, whatever their place in the tile."""
    row = np.random.default_rng(0).standard_normal(values.shape[1], np.float32)
    result = values @ np.tile(row, (TILE, 1)).T
    return bool((result.view(np.int32) == result.view(np.int32)[:, :1]).all())


def matmul(weight: ReferenceWeight, x: Float) -> Float:
    """x @ weight.T, [n, out_features], each row independent of n and of its place."""
    n = len(x)
    result = np.empty((n, weight.out_features), np.float32)
    if weight.row_by_row:
        for i in range(n):
            result[i] = weight.values @ x[i]
        return result
    for start in range(0, n, TILE):
        tile = x[start : start + TILE]
        if len(tile) < TILE:
            tile = np.concatenate([tile, np.zeros((TILE - len(tile), x.shape[1]), np.float32)])
        result[start : start + TILE] = (weight.values @ tile.T).T[: n - start]
    return result


def apply_gate(x: Float, kind: Gate) -> Float:
    result: Float
    if kind == "silu":
        result = x / (np.float32(1) + np.exp(-np.maximum(x, np.float32(-80))))
    elif kind == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        result = np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
    else:
        result = np.float32(0.5) * x * (np.float32(1) + _erf(x * np.float32(math.sqrt(0.5))).astype(np.float32))
    return result


_erf = np.vectorize(math.erf, otypes=[np.float64])
