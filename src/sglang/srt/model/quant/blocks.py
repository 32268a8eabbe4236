"""The layout of every block format, and its dequantization in plain NumPy (source: the GGUF format, ggml's block layouts).

A block is a run of consecutive values of a row. Below, `q` are the stored integers, `d` and `m` the block's float16 scale and
minimum, "low then high" says that a byte holds value j in its low half and value j + half in its high half.

    q4_0   32   d, 16 bytes low then high                          (q - 8) d
    q4_1   32   d, m, 16 bytes low then high                       q d + m
    q5_0   32   d, 32 fifth bits, 16 bytes low then high           (q - 16) d
    q5_1   32   d, m, 32 fifth bits, 16 bytes low then high        q d + m
    q8_0   32   d, 32 signed bytes                                 q d
    q4_k  256   d, dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 4 x 32 bytes low then high: 8 groups of 32
                                                                   q (d scale) - dmin min
    q5_k  256   the same with 32 bytes of fifth bits (bit g of byte j belongs to value j of group g)
    q6_k  256   128 bytes of low 4 bits, 64 of high 2 bits, 16 signed scales, d: 16 groups of 16
                                                                   (q - 32) (d scale)

    iq4_nl 32   d, 16 bytes low then high: places in a table       table[q] d
    iq4_xs 256  d, 8 scales of 6 bits (2 bytes of high 2 bits, 4 of low 4), 8 x 16 bytes low then high: 8 groups of 32
                                                                   table[q] (d (scale - 32))
    mxfp4  32   an exponent e, 16 bytes low then high: numbers of 4 bits (OCP Microscaling Formats, E2M1)
                                                                   value[q] 2^(e - 127)

Those of fewer bits are in low_bits.py. The order of operations is ggml's, so results are bitwise equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.low_bits import E2M1, LEVELS, Bytes, Floats, Levels, half, iq1_s_parts, q2_k

CHUNK_BYTES = 1 << 18
"""bytes of blocks converted at a time: temporaries stay in the cache"""


def dequantize(format_name: str, data: Bytes) -> Floats:
    """Rows of blocks [rows, bytes of a row] as values [rows, values of a row]."""
    block_len, block_bytes, convert = _LAYOUTS[format_name]
    rows, row_bytes = data.shape
    blocks = np.ascontiguousarray(data).reshape(-1, block_bytes)
    out = np.empty((len(blocks), block_len), np.float32)
    step = max(1, CHUNK_BYTES // block_bytes)
    for start in range(0, len(blocks), step):
        convert(blocks[start : start + step], out[start : start + step])
    return out.reshape(rows, row_bytes // block_bytes * block_len)


# --- 16-bit numbers -----------------------------------------------------------------------------------------------------------


def f16_values(bits: npt.NDArray[np.uint16]) -> Floats:
    return bits.view(np.float16).astype(np.float32)


def bf16_values(bits: npt.NDArray[np.uint16]) -> Floats:
    """A bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def bf16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """Rounds to nearest, ties to even; a NaN stays a NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x40
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet_nan, rounded).astype(np.uint16)


# --- blocks to values ---------------------------------------------------------------------------------------------------------


def _nibbles(packed: Bytes, out: Floats) -> None:
    """Low halves to the first half of `out`, high halves to the second."""
    half = packed.shape[1]
    np.bitwise_and(packed, 0x0F, out=out[:, :half], casting="unsafe")
    np.right_shift(packed, 4, out=out[:, half:], casting="unsafe")


def _fifth_bits(blocks: Bytes, at: int) -> Floats:
    """32 bits of each block, first bit lowest: 0.0 or 16.0 each."""
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little").astype(np.float32)
    bits *= 16
    return bits


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= half(blocks, 0)
    out += half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks, 2)
    out -= 16
    out *= half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks, 4)
    out *= half(blocks, 0)
    out += half(blocks, 2)


def _q8_0(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= half(blocks, 0)


def _k_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 6-bit scales and minima of the 8 groups of a q4_k or q5_k block, from 12 bytes.

    Bytes 0-3 hold scales 0-3 and, in their top two bits, the tops of scales 4-7; bytes 4-7 the same of the minima; bytes 8-11
    the low halves of scales 4-7 (low) and of minima 4-7 (high).
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _scale_groups(blocks: Bytes, q: Floats) -> None:
    """Turns q [n, 8, 32] into q (d scale) - dmin min, in place."""
    scales, minima = _k_scales(blocks[:, 4:16])
    q *= (half(blocks, 0) * scales)[:, :, None]
    q -= (half(blocks, 2) * minima)[:, :, None]


def _q4_k(blocks: Bytes, out: Floats) -> None:
    n = len(blocks)
    _nibbles(blocks[:, 16:].reshape(n * 4, 32), out.reshape(n * 4, 64))
    _scale_groups(blocks, out.reshape(n, 8, 32))


def _q5_k(blocks: Bytes, out: Floats) -> None:
    n = len(blocks)
    _nibbles(blocks[:, 48:].reshape(n * 4, 32), out.reshape(n * 4, 64))
    groups = out.reshape(n, 8, 32)
    bits = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    groups += bits.astype(np.float32) * np.float32(16)
    _scale_groups(blocks, groups)


def _q6_k(blocks: Bytes, out: Floats) -> None:
    n = len(blocks)
    low = blocks[:, :128].reshape(n, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 0x0F
    high = blocks[:, 128:192].reshape(n, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = low.reshape(n, 256) | (high.reshape(n, 256) << 4)
    np.subtract(q, np.float32(32), out=out)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    groups = out.reshape(n, 16, 16)
    groups *= (half(blocks, 208) * scales)[:, :, None]


# --- 4-bit numbers that are not evenly spaced: signed bytes of a table, and a scale for each group of 32 -------------------------

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
Signed = npt.NDArray[np.int8]


def _looked_up(packed: Bytes, table: Signed) -> Signed:
    """[n, 16] bytes, low then high, as [n, 32] signed bytes."""
    return np.concatenate([table[packed & 0x0F], table[packed >> 4]], axis=1)


def _iq4_nl_levels(blocks: Bytes) -> tuple[Signed, Floats]:
    return _looked_up(blocks[:, 2:], _IQ4), half(blocks, 0)


def _iq4_xs_levels(blocks: Bytes) -> tuple[Signed, Floats]:
    groups = np.arange(8, dtype=np.uint16)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> (2 * groups) & 3
    low = blocks[:, 4:8].repeat(2, axis=1) >> (4 * (groups % 2)).astype(np.uint8) & 0x0F
    scales = (low | (high << 4)).astype(np.float32) - np.float32(32)
    return _looked_up(blocks[:, 8:].reshape(-1, 16), _IQ4), (half(blocks, 0) * scales).reshape(-1, 1)


def _mxfp4_levels(blocks: Bytes) -> tuple[Signed, Floats]:
    return _looked_up(blocks[:, 1:], E2M1), np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)


_TABLES: dict[str, tuple[int, int, Callable[[Bytes], tuple[Levels, Floats]]]] = {
    "iq4_nl": (32, 18, _iq4_nl_levels),
    "iq4_xs": (256, 136, _iq4_xs_levels),
    "mxfp4": (32, 17, _mxfp4_levels),
    **LEVELS,
}
"""format -> values and bytes of a block, and its levels [groups, values of a group] with their scales [groups, 1]"""


def _by_levels(format_name: str) -> Callable[[Bytes, Floats], None]:
    def convert(blocks: Bytes, out: Floats) -> None:
        levels, scales = _TABLES[format_name][2](blocks)
        np.multiply(levels, scales, out=out.reshape(levels.shape), dtype=np.float32)

    return convert


_LAYOUTS: dict[str, tuple[int, int, Callable[[Bytes, Floats], None]]] = {
    "q4_0": (32, 18, _q4_0),
    "q4_1": (32, 20, _q4_1),
    "q5_0": (32, 22, _q5_0),
    "q5_1": (32, 24, _q5_1),
    "q8_0": (32, 34, _q8_0),
    "q4_k": (256, 144, _q4_k),
    "q5_k": (256, 176, _q5_k),
    "q6_k": (256, 210, _q6_k),
    "q2_k": (256, 84, q2_k),
    **{name: (block_len, block_bytes, _by_levels(name)) for name, (block_len, block_bytes, _) in _TABLES.items()},
}

# --- values to blocks ---------------------------------------------------------------------------------------------------------


def _in_chunks(values: Floats, block_bytes: int, convert: Callable[[Floats, Bytes], None]) -> Bytes:
    rows, width = values.shape
    if width % 32:
        raise ValueError(f"rows of {width} values cannot be cut into blocks of 32")
    groups = np.ascontiguousarray(values, np.float32).reshape(-1, 32)
    out = np.empty((len(groups), block_bytes), np.uint8)
    step = CHUNK_BYTES // block_bytes
    for start in range(0, len(groups), step):
        convert(groups[start : start + step], out[start : start + step])
    return out.reshape(rows, -1)


def _put_half(out: Bytes, at: int, column: Floats) -> Floats:
    """Stores a column as float16 and returns what a reader will see, so that rounding the scale costs nothing more."""
    half = np.clip(column, -65504, 65504).astype(np.float16)
    out[:, at : at + 2] = half.reshape(-1, 1).view(np.uint8)
    return half.astype(np.float32)


def _levels(values: Floats, step: Floats, low: int, high: int) -> npt.NDArray[Any]:
    """values / step, rounded and limited; 0 where the step is 0."""
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
    return np.clip(np.rint(values * inverse), low, high)


def _to_q8_0(values: Floats, out: Bytes) -> None:
    step = _put_half(out, 0, np.abs(values).max(axis=1, keepdims=True) / np.float32(127))
    out[:, 2:] = _levels(values, step, -127, 127).astype(np.int8).view(np.uint8)


def _to_q4_1(values: Floats, out: Bytes) -> None:
    least = _put_half(out, 2, values.min(axis=1, keepdims=True))
    step = _put_half(out, 0, (values.max(axis=1, keepdims=True) - least) / np.float32(15))
    q = _levels(values - least, step, 0, 15).astype(np.uint8)
    out[:, 4:] = q[:, :16] | (q[:, 16:] << 4)


def quantize_q8_0(values: Floats) -> Bytes:
    """[n, k] to q8_0 rows: the scale of a block is its largest magnitude over 127."""
    return _in_chunks(values, 34, _to_q8_0)


def quantize_q4_1(values: Floats) -> Bytes:
    """[n, k] to q4_1 rows: 16 levels from a block's least to its greatest value."""
    return _in_chunks(values, 20, _to_q4_1)


# --- blocks to blocks that the kernels multiply -------------------------------------------------------------------------------------


def packable_format(format_name: str) -> str:
    """The format that `repacked` converts to: the same one where the kernels take it."""
    if format_name not in _TABLES and format_name != "q2_k":
        return format_name
    return _SMALL.get(format_name, ("q8_0", 34, _by_value))[0]


def repacked(format_name: str, data: Bytes) -> Bytes:
    """Rows of such blocks in their packable format. Exact for iq4_nl, tq1_0 and tq2_0, and for mxfp4 within float16's range. Where a
    group of 32 has one scale, that is rounded to float16; elsewhere values are rounded to 8 bits."""
    block_len, block_bytes, _ = _LAYOUTS[format_name]
    rows, row_bytes = data.shape
    blocks = np.ascontiguousarray(data).reshape(-1, block_bytes)
    _, out_bytes, convert = _SMALL.get(format_name, ("q8_0", 34, _by_value))
    per = block_len // 32
    out = np.empty((len(blocks) * per, out_bytes), np.uint8)
    step = max(1, CHUNK_BYTES // block_bytes)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        convert(format_name, part, out[start * per : (start + len(part)) * per])
    return out.reshape(rows, -1)


def _by_value(format_name: str, blocks: Bytes, out: Bytes) -> None:
    """Any format as q8_0."""
    values = np.empty((len(blocks), _LAYOUTS[format_name][0]), np.float32)
    _LAYOUTS[format_name][2](blocks, values)
    _to_q8_0(values.reshape(-1, 32), out)


def _by_level(format_name: str, blocks: Bytes, out: Bytes) -> None:
    """Groups of 32 signed bytes as q8_0."""
    levels, scales = _TABLES[format_name][2](blocks)
    _put_half(out, 0, scales)
    out[:, 2:] = levels.view(np.uint8)


def _ternary(format_name: str, blocks: Bytes, out: Bytes) -> None:
    """-1, 0, 1 as q4_0, whose levels are 8 higher."""
    levels, scales = _TABLES[format_name][2](blocks)
    _put_half(out, 0, np.repeat(scales, 8, axis=0))
    q = (levels.reshape(-1, 32) + 8).astype(np.uint8)
    out[:, 2:] = q[:, :16] | (q[:, 16:] << 4)


def _shifted_ternary(format_name: str, blocks: Bytes, out: Bytes) -> None:
    """-1, 0, 1 with something added to all of a group, as q4_1."""
    entries, added, scales = iq1_s_parts(blocks)
    _put_half(out, 0, scales)
    _put_half(out, 2, scales * (added - 1))
    q = (entries + 1).astype(np.uint8)
    out[:, 4:] = q[:, :16] | (q[:, 16:] << 4)


_SMALL: dict[str, tuple[str, int, Callable[[str, Bytes, Bytes], None]]] = {
    **dict.fromkeys(("iq4_nl", "iq4_xs", "mxfp4", "iq2_xxs", "iq3_xxs", "iq3_s"), ("q8_0", 34, _by_level)),
    **dict.fromkeys(("tq1_0", "tq2_0"), ("q4_0", 18, _ternary)),
    "iq1_s": ("q4_1", 20, _shifted_ternary),
}
"""format -> what it becomes, bytes of a block of that, and how; others become q8_0 by value"""
