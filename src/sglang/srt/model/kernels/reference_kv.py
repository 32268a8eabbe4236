"""K and V of one layer for the NumPy op set: in float32, or in 8 bits with a scale for each head of each token.

int8        scale = largest / 127       value = scale * byte
fp8_e4m3    scale = largest / 448       value = scale * F8_VALUES[byte]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.kernels.reference_linear import TILE
from sglang.srt.model.quant.float8 import F8_VALUES

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int32]

LARGEST = {"int8": 127, "fp8_e4m3": 448}
MOST = np.float32(65504)
"""the largest half: what is larger, or no number, is stored as it or its negative (as the native kernels do)"""


class ReferenceKV:
    """One layer's K and V by slot. `form`: float32, int8 or fp8_e4m3."""

    def __init__(self, num_slots: int, num_kv_heads: int, head_dim: int, form: str = "float32") -> None:
        self.num_kv_heads, self.head_dim, self.form = num_kv_heads, head_dim, form
        dtype: Any = {"float32": np.float32, "int8": np.int8, "fp8_e4m3": np.uint8}[form]
        self.k, self.v = (np.zeros((num_slots, num_kv_heads, head_dim), dtype) for _ in range(2))
        self.scales: list[Float] = []
        """of K and of V, [num_slots, num_kv_heads]; none in float32"""
        if form != "float32":
            self.scales = [np.zeros((num_slots, num_kv_heads), np.float32) for _ in range(2)]

    @property
    def arrays(self) -> list[npt.NDArray[Any]]:
        """All that a slot holds."""
        return [self.k, self.v, *self.scales]

    def put(self, slots: Int, k: Float, v: Float) -> None:
        """k, v: [n, num_kv_heads, head_dim], for slots [n]."""
        for i, (stored, x) in enumerate(((self.k, k), (self.v, v))):
            if self.scales:
                stored[slots], self.scales[i][slots] = to_bytes(x, self.form)
            else:
                stored[slots] = x

    def take(self, slots: Int) -> tuple[Float, Float]:
        """K and V of the slots, with zeros up to the end of the last tile. (`slots` starts at a multiple of TILE.)"""
        found = []
        for i, stored in enumerate((self.k, self.v)):
            rows = np.zeros((-(-len(slots) // TILE) * TILE, *stored.shape[1:]), np.float32)
            values = stored[slots]
            if self.scales:
                values = (F8_VALUES[values] if self.form == "fp8_e4m3" else values) * self.scales[i][slots][..., None]
            rows[: len(slots)] = values
            found.append(rows)
        return found[0], found[1]


def to_bytes(x: Float, form: str) -> tuple[npt.NDArray[Any], Float]:
    """Rows of values, and their scales: x is [..., n], scales are [...]."""
    x = np.clip(np.where(np.isnan(x), -MOST, x), -MOST, MOST)
    most = np.float32(LARGEST[form])
    top = np.abs(x).max(-1)
    is_some = top > np.float32(1e-30)
    inverse = np.where(is_some, most / np.where(is_some, top, 1), np.float32(0)).astype(np.float32)
    scales = np.where(is_some, top * (np.float32(1) / most), np.float32(0)).astype(np.float32)
    y = x * inverse[..., None]
    return (np.rint(y).astype(np.int8) if form == "int8" else to_e4m3(np.clip(y, -most, most))), scales


def to_e4m3(x: Float) -> npt.NDArray[np.uint8]:
    """To the nearest e4m3, the even one of two; |x| is at most 448."""
    bits = np.abs(x).view(np.uint32)
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20).astype(np.int32) - (120 << 3)
    tiny = np.rint(np.abs(x) * 512).astype(np.int32)
    code: npt.NDArray[np.uint8] = (np.where(np.abs(x) >= 1 / 64, normal, tiny) | np.where(x < 0, 0x80, 0)).astype(np.uint8)
    return code
