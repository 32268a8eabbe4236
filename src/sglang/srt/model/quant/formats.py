"""Tensors as checkpoints store them: plain numbers or blocks of quantized ones.

The weight readers produce `HostTensor`s and the op sets pack them. `blocks.py` defines every block format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant import blocks
from sglang.srt.model.quant.blocks import packable_format
from sglang.srt.model.quant.float8 import f8_values
from sglang.srt.model.quant.low_bits import LEVELS


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
        BlockFormat("f8", 1, 1),
        BlockFormat("q4_0", 32, 18),
        BlockFormat("q4_1", 32, 20),
        BlockFormat("q5_0", 32, 22),
        BlockFormat("q5_1", 32, 24),
        BlockFormat("q8_0", 32, 34),
        BlockFormat("q4_k", 256, 144),
        BlockFormat("q5_k", 256, 176),
        BlockFormat("q6_k", 256, 210),
        BlockFormat("iq4_nl", 32, 18),
        BlockFormat("iq4_xs", 256, 136),
        BlockFormat("mxfp4", 32, 17),
        BlockFormat("q2_k", 256, 84),
        *(BlockFormat(name, block_len, block_bytes) for name, (block_len, block_bytes, _) in LEVELS.items()),
    )
}


@dataclass(frozen=True)
class HostTensor:
    """A tensor in host memory, often a view of a mapped file.

    `shape` counts values, rows first ([out_features, in_features] for a matrix). `data` is, by format: f32: float32 of
    `shape`; f16 and bf16: uint16 of `shape` (raw bits; NumPy has no bfloat16); f8: uint8 of `shape` (e4m3fn), to be multiplied
    with the row's `scale`; blocks: uint8 [rows, bytes of a row].
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]
    scale: npt.NDArray[np.float32] | None = None
    """[rows], f8 only"""
    order: npt.NDArray[np.int32] | None = None
    """[columns], blocks only: column j of `data` is column order[j] of the matrix; None: they are in their own order"""

    @property
    def is_dense(self) -> bool:
        """Whether every value stands alone (f32, f16, bf16, f8)."""
        return FORMATS[self.format].block_len == 1

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The values as float32, of `shape`; for f32 the data itself, otherwise a new array."""
        if self.format == "f32":
            return self.data
        if self.format == "f16":
            return blocks.f16_values(self.data)
        if self.format == "bf16":
            return blocks.bf16_values(self.data)
        if self.format == "f8":
            return f8_values(self.data, self.scale)
        values = blocks.dequantize(self.format, self.data).reshape(self.shape)
        if self.order is None:
            return values
        natural = np.empty_like(values)
        natural[:, self.order] = values
        return natural

    def in_order(self) -> HostTensor:
        """The matrix with its columns in their own order: 32 neighbours then have 32 scales, and become q8_0, whose rounding is at
        most a sixteenth of a 4-bit level where scales are alike."""
        if self.order is None:
            return self
        rows, width = self.shape
        data = np.empty((rows, width // 32 * 34), np.uint8)
        step = max(1, (1 << 20) // width)  # float32 values of the whole matrix would take gigabytes
        for start in range(0, rows, step):
            part = self.slice_rows(start, min(start + step, rows))
            data[start : start + step] = blocks.quantize_q8_0(part.dequantize())
        return HostTensor(self.name, "q8_0", self.shape, data)

    def packable(self) -> HostTensor:
        """The tensor in a format that the kernels pack: the smallest, and those with tables of values, become another."""
        target = packable_format(self.format)
        return self if target == self.format else replace(self, format=target, data=blocks.repacked(self.format, self.data))

    def slice_rows(self, start: int, stop: int) -> HostTensor:
        """Rows start .. stop - 1 of a matrix or vector, as a view."""
        if not 0 <= start <= stop <= self.shape[0] or len(self.shape) > 2:
            raise ValueError(f"rows {start}..{stop} of {self.name}, which is {self.shape}")
        scale = None if self.scale is None else self.scale[start:stop]
        return replace(self, shape=(stop - start, *self.shape[1:]), data=self.data[start:stop], scale=scale)

    def slice_columns(self, start: int, stop: int) -> HostTensor:
        """Columns start .. stop - 1 of a matrix, as a view. Both must lie between blocks."""
        if self.order is not None:
            return self.in_order().slice_columns(start, stop)
        block = FORMATS[self.format]
        if len(self.shape) != 2 or not 0 <= start <= stop <= self.shape[1]:
            raise ValueError(f"columns {start}..{stop} of {self.name}, which is {self.shape}")
        if start % block.block_len or stop % block.block_len:
            raise ValueError(f"columns {start}..{stop} of {self.name} cut its blocks of {block.block_len} values")
        per = 1 if self.is_dense else block.block_bytes
        first, last = start // block.block_len * per, stop // block.block_len * per
        return replace(self, shape=(self.shape[0], stop - start), data=self.data[:, first:last])

    def with_zero_rows(self, num_rows: int) -> HostTensor:
        """The matrix with rows of zeros below, num_rows in all."""
        if self.format not in ("f32", "f16", "bf16", "q8_0") or len(self.shape) != 2:
            raise ValueError(f"rows of zeros for {self.name}, which is {self.shape} in {self.format}")
        data = np.pad(self.data, ((0, num_rows - self.shape[0]), (0, 0)))
        return replace(self, shape=(num_rows, self.shape[1]), data=data)

    def take_rows(self, rows: npt.NDArray[np.intp]) -> HostTensor:
        """The given rows of a matrix or vector, in their order (a copy; blocks stay as they are)."""
        if len(self.shape) > 2 or (len(self.shape) == 1 and not self.is_dense):
            raise ValueError(f"rows of {self.name}, which is {self.shape} in {self.format}")
        scale = None if self.scale is None else self.scale[rows]
        return replace(self, shape=(len(rows), *self.shape[1:]), data=self.data[rows], scale=scale)


def dense(name: str, values: npt.NDArray[np.float32], format_name: str = "f32") -> HostTensor:
    """Values as a dense tensor in f32, f16 or bf16 (rounded to nearest, ties to even)."""
    if format_name == "f32":
        data: npt.NDArray[Any] = np.ascontiguousarray(values, dtype=np.float32)
    elif format_name == "f16":
        with np.errstate(over="ignore"):
            data = values.astype(np.float16).view(np.uint16)
    elif format_name == "bf16":
        data = blocks.bf16_bits(values)
    else:
        raise ValueError(f"values are not made {format_name!r} here")
    return HostTensor(name, format_name, values.shape, data)


def quantize_q8_0(name: str, values: npt.NDArray[np.float32]) -> HostTensor:
    """A matrix [n, k], k a multiple of 32, in 8-bit blocks: 8.5 bits a value."""
    return HostTensor(name, "q8_0", values.shape, blocks.quantize_q8_0(values))


def quantize_q4_1(name: str, values: npt.NDArray[np.float32]) -> HostTensor:
    """A matrix [n, k], k a multiple of 32, in 4-bit blocks with a minimum each: 5 bits a value."""
    return HostTensor(name, "q4_1", values.shape, blocks.quantize_q4_1(values))
