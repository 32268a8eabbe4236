"""ggml's smallest block types as the CPU kernels pack them (csrc/kernels/pack.h, small.h). Nothing is rounded but the scales of iq4_xs and of
iq3, to half precision.

    places 4    32 values    a float16 scale, 16 bytes low then high: places in a table of 16          iq4, iq3
    places 3   256 values    a float16 scale, 16 signed factors, 256 bytes: places in a table of 8     q3_k, iq2, iq1
    q2_k       256 values    its own blocks (low_bits.q2_k)                                            tq1_0, tq2_0
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.low_bits import LEVELS, Bytes, factors_of

CHUNK = 1 << 12
"""blocks at a time"""
_PLACES = {
    "iq3_s": (1, 3, 5, 7, 9, 11, 13, 15, -1, -3, -5, -7, -9, -11, -13, -15),
    "iq3_xxs": (4, 12, 20, 28, 36, 44, 52, 62, -4, -12, -20, -28, -36, -44, -52, -62),
    "q3_k": (-4, -3, -2, -1, 0, 1, 2, 3),
    **dict.fromkeys(("iq2_s", "iq2_xs", "iq2_xxs"), (8, 25, 43, 0, -8, -25, -43)),
    **dict.fromkeys(("iq1_m", "iq1_s"), (-9, -7, -1, 1, 7, 9)),
}
"""values by their places in the kernels' tables; of iq1 in eighths"""


def _table(values: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The place of every signed byte that is a value."""
    table = np.zeros(256, np.uint8)
    table[np.array(values, np.int8).view(np.uint8)] = np.arange(len(values), dtype=np.uint8)
    return table


_TABLES = {name: _table(values) for name, values in _PLACES.items()}


def _places(name: str, levels: npt.NDArray[np.number]) -> Bytes:
    wide = levels * 8 if name.startswith("iq1") else levels
    found: Bytes = _TABLES[name][wide.astype(np.int8).view(np.uint8)]
    return found


def _halves(values: npt.NDArray[np.floating]) -> Bytes:
    """A column as float16, [n, 2] bytes."""
    column: Bytes = np.clip(values, -65504, 65504).astype(np.float16).reshape(-1, 1).view(np.uint8)
    return column


def _iq4_xs(name: str, blocks: Bytes) -> Bytes:
    groups = np.arange(8, dtype=np.uint16)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> (2 * groups) & 3
    low = blocks[:, 4:8].repeat(2, axis=1) >> (4 * (groups % 2)).astype(np.uint8) & 0x0F
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    scales = d * ((low | (high << 4)).astype(np.float32) - np.float32(32))
    return np.concatenate([_halves(scales), blocks[:, 8:].reshape(-1, 16)], axis=1)


def _four(name: str, blocks: Bytes) -> Bytes:
    levels, scales = LEVELS[name][2](blocks)
    places = _places(name, levels)
    return np.concatenate([_halves(scales), places[:, :16] | places[:, 16:] << 4], axis=1)


def _three(name: str, blocks: Bytes) -> Bytes:
    n = len(blocks)
    places = _places(name, LEVELS[name][2](blocks)[0]).reshape(n, 256)
    d, factors = factors_of(name, blocks)
    return np.concatenate([d.reshape(n, 1).view(np.uint8), factors.astype(np.int8).view(np.uint8), places], axis=1)


def _ternary(name: str, blocks: Bytes) -> Bytes:
    """q d - d is (q - 1) d."""
    n, d = len(blocks), blocks[:, -2:]
    q = (LEVELS[name][2](blocks)[0].reshape(n, 2, 4, 32) + 1).astype(np.uint8)
    packed = q[:, :, 0] | q[:, :, 1] << 2 | q[:, :, 2] << 4 | q[:, :, 3] << 6
    return np.concatenate([np.full((n, 16), 0x11, np.uint8), packed.reshape(n, 64), d, d], axis=1)


CONVERTED: dict[str, tuple[int, int, Callable[[str, Bytes], Bytes]]] = {
    "iq4_xs": (136, 8 * 18, _iq4_xs),
    "iq3_s": (110, 8 * 18, _four),
    "iq3_xxs": (98, 8 * 18, _four),
    "q3_k": (110, 274, _three),
    "iq2_s": (82, 274, _three),
    "iq2_xs": (74, 274, _three),
    "iq2_xxs": (66, 274, _three),
    "iq1_m": (56, 274, _three),
    "iq1_s": (50, 274, _three),
    "tq1_0": (54, 84, _ternary),
    "tq2_0": (66, 84, _ternary),
}
"""format -> bytes of a block of 256, what they become, and how; iq4_nl and q2_k are taken as they are"""


def kernel_blocks(name: str, data: Bytes) -> Bytes:
    """Rows of blocks [rows, bytes of a row] as the kernels pack them."""
    size, made, convert = CONVERTED[name]
    rows, row_bytes = data.shape
    blocks = np.ascontiguousarray(data).reshape(-1, size)
    out = np.empty((len(blocks), made), np.uint8)
    for start in range(0, len(blocks), CHUNK):
        part = blocks[start : start + CHUNK]
        out[start : start + len(part)] = convert(name, part).reshape(len(part), made)
    return out.reshape(rows, row_bytes // size * made)
