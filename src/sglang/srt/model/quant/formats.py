"""Tensors as checkpoints store them: plain numbers or blocks of quantised ones.

`HostTensor` is what the weight readers produce and the op sets pack. `dequantise` is the meaning of every block format, in
plain NumPy (source: the GGUF format, ggml's block layouts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BlockFormat:
    """`block_len` consecutive values of a row take `block_bytes` bytes."""

    name: str
    block_len: int
    block_bytes: int


FORMATS = {
    f.name: f
    for f in (
        BlockFormat("f32", 1, 4),
        BlockFormat("f16", 1, 2),
        BlockFormat("bf16", 1, 2),
        BlockFormat("q4_0", 32, 18),
        BlockFormat("q4_1", 32, 20),
        BlockFormat("q5_0", 32, 22),
        BlockFormat("q5_1", 32, 24),
        BlockFormat("q8_0", 32, 34),
        BlockFormat("q4_k", 256, 144),
        BlockFormat("q5_k", 256, 176),
        BlockFormat("q6_k", 256, 210),
    )
}


@dataclass(frozen=True)
class HostTensor:
    """A tensor in host memory, often a view of a mapped file.

    `shape` counts values, rows first ([out_features, in_features] for a matrix). `data` is, by format: f32: float32 of
    `shape`; f16 and bf16: uint16 of `shape` (raw bits; NumPy has no bfloat16); blocks: uint8 [rows, bytes of a row].
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]

    def dequantise(self) -> npt.NDArray[np.float32]:
        """The values as float32, of `shape`."""
        raise NotImplementedError
