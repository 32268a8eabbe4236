"""Converts the packed weights of AWQ, GPTQ and compressed-tensors to our blocks (`blocks.py`).

    value = scale * (level - zero)      levels of 4 or 8 bits without sign; scale and zero of a group of a row

In q4_1 that is scale * level + (-scale * zero), with both as float16: exact for a zero of 8 (symmetric checkpoints) and for all
whose product with the scale fits 11 bits, else within half a unit of float16's last place. Groups longer than 32 repeat their
scale in each of their blocks of 32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.formats import HostTensor

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""AutoAWQ's words: column j of eight lies in nibble AWQ_ORDER[j]"""

BLOCK = 32


def unpack(words: Words, bits: int) -> Levels:
    """Levels packed along the last axis, the first in the lowest bits: [..., n] words to [..., n * 32 / bits]."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    out = np.empty((*data.shape, 2), np.uint8)
    np.bitwise_and(data, 15, out=out[..., 0])
    np.right_shift(data, 4, out=out[..., 1])
    return out.reshape(*data.shape[:-1], -1)


def unpack_awq(words: Words) -> Levels:
    """AutoAWQ's order of nibbles, [..., n] words to [..., 8 n] levels."""
    levels = unpack(words, 4)
    shape = levels.shape
    return levels.reshape(*shape[:-1], -1, 8)[..., AWQ_ORDER].reshape(shape)


def pack_blocks(name: str, bits: int, levels: Levels, scales: Floats, zeros: npt.NDArray[Any]) -> HostTensor:
    """A matrix [n, k] of levels with `scales` and `zeros` [n, groups] as q4_1 (4 bits) or q8_0 (8 bits). Raises ValueError
    when k or a group is no multiple of 32, or where 8-bit levels less their zero do not fit a signed byte."""
    n, k = levels.shape
    groups = scales.shape[1]
    if k % groups or (k // groups) % BLOCK:
        raise ValueError(f"rows of {k} values in {groups} groups cannot be cut into blocks of {BLOCK}")
    repeats = k // groups // BLOCK
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError("it has scales that float16 does not hold")
    if bits == 4:
        return HostTensor(name, "q4_1", (n, k), _q4_1(levels, halves, zeros, repeats))
    return HostTensor(name, "q8_0", (n, k), _q8_0(levels, halves, zeros, repeats))


def _q4_1(levels: Levels, scales: npt.NDArray[np.float16], zeros: npt.NDArray[Any], repeats: int) -> Levels:
    n, k = levels.shape
    out = np.empty((n, k // BLOCK, 20), np.uint8)
    minima = -(scales.astype(np.float32) * zeros.astype(np.float32))
    for at, column in ((0, scales), (2, minima.astype(np.float16))):
        out[:, :, at : at + 2] = np.repeat(np.ascontiguousarray(column), repeats, axis=1).view(np.uint8).reshape(n, -1, 2)
    blocks = levels.reshape(n, k // BLOCK, BLOCK)
    np.left_shift(blocks[:, :, 16:], 4, out=out[:, :, 4:])
    out[:, :, 4:] |= blocks[:, :, :16]
    return out.reshape(n, -1)


def _q8_0(levels: Levels, scales: npt.NDArray[np.float16], zeros: npt.NDArray[Any], repeats: int) -> Levels:
    n, k = levels.shape
    out = np.empty((n, k // BLOCK, 34), np.uint8)
    out[:, :, :2] = np.repeat(np.ascontiguousarray(scales), repeats, axis=1).view(np.uint8).reshape(n, -1, 2)
    shifted = levels.reshape(n, -1, BLOCK).astype(np.int16)
    shifted -= np.repeat(zeros.astype(np.int16), repeats, axis=1)[:, :, None]
    if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
        raise ValueError("it has 8-bit levels more than 127 above or 128 below their zero point")
    out[:, :, 2:] = shifted.astype(np.int8).view(np.uint8)
    return out.reshape(n, -1)


def pack_out_of_order(
    name: str, bits: int, levels: Levels, scales: Floats, zeros: npt.NDArray[Any], group_of: Words
) -> HostTensor:
    """GPTQ with "act-order": column j of the matrix belongs to group `group_of[j]`, so that neighbours share nothing. Columns are
    put group by group, and the tensor says which they are. Raises ValueError as `pack_blocks`, and for groups of several
    lengths."""
    sizes = np.bincount(group_of, minlength=scales.shape[1])
    if (sizes != sizes[0]).any():
        raise ValueError(f"its groups have {sizes.min()} to {sizes.max()} columns, and should have as many each")
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    return replace(pack_blocks(name, bits, np.ascontiguousarray(levels[:, order]), scales, zeros), order=order)


def mxfp4_blocks(name: str, data: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> HostTensor:
    """A matrix of 4-bit floats as ggml has them: of each 32, the first 16 in the low halves (source: the OCP Microscaling formats).

    data: [rows, groups, 16], neighbours in a byte, the first in the low half; scales: [rows, groups], exponents less 127."""
    rows, groups, _ = data.shape
    values = np.stack([data & 15, data >> 4], axis=-1).reshape(rows, groups, 2, 16)
    blocks = np.empty((rows, groups, 17), np.uint8)
    blocks[..., 0] = scales
    blocks[..., 1:] = values[:, :, 0] | values[:, :, 1] << 4
    return HostTensor(name, "mxfp4", (rows, groups * 32), blocks.reshape(rows, -1))
