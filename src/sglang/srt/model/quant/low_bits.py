"""The meaning of ggml's smallest block types, in plain NumPy: signed levels, and a scale for each group of them.

Numbers are little-endian; d is a float16; "codebook" entries are runs of values (codebooks.py). A byte of a sign table has bit i set
where value i is negative; 7 bits say such a byte, whose number of signs is even.

    q3_k    256  32 bytes of high bits, 64 of low 2 bits, 16 scales of 6 bits, d         (q - 4 if the high bit is off) (d (s - 32))
    tq2_0   256  64 bytes of 2 bits, d                                                   (q - 1) d
    tq1_0   256  48 + 4 bytes of 5 and 4 digits to the base 3, d                         (q - 1) d
    nvfp4    64  4 scales (E4M3 without sign), 4 x 8 bytes low then high                 E2M1 scale
    iq2_xxs 256  d, 8 x (4 entries of 8 bits, 4 x 7 bits of signs, a scale of 4 bits)    entry (d (1/2 + s) / 4)
    iq2_xs  256  d, 32 x (an entry of 9 bits, 7 bits of signs), 16 scales of 4 bits      entry (d (1/2 + s) / 4)
    iq2_s   256  d, 32 low bytes of entries, 32 of signs, 8 of high 2 bits, 16 scales    entry (d (1/2 + s) / 4)
    iq3_xxs 256  d, 64 entries of 8 bits, 8 x (4 x 7 bits of signs, a scale of 4 bits)   entry (d (1/2 + s) / 2)
    iq3_s   256  d, 64 low bytes of entries, 8 of high bits, 32 of signs, 8 scales       entry (d (1 + 2 s))
    iq1_s   256  d, 32 low bytes of entries, 8 x (4 x 3 high bits, a scale of 3 bits, a sign)
                                                                                         (entry -+ 1/8) (d (1 + 2 s))
    iq1_m   256  32 low bytes of entries, 16 bytes of 2 x (3 high bits, a sign), 4 x (4 scales of 3 bits, a quarter of d)
                                                                                         (entry -+ 1/8) (d (1 + 2 s))

The order of operations is ggml's own, so results are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.model.quant.codebooks import codebook

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Levels = npt.NDArray[np.int8] | Floats

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""twice the numbers"""
_DELTA = np.float32(0.125)


def half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as a column."""
    halves: npt.NDArray[np.float16] = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)
    wide: Floats = halves.astype(np.float32)
    return wide


def _fields(packed: npt.NDArray[Any], shifts: range, mask: int) -> npt.NDArray[Any]:
    """[n, m] numbers as [n, m, len(shifts)] parts of their bits."""
    parts: npt.NDArray[Any] = (packed[..., None] >> np.array(shifts, packed.dtype)) & packed.dtype.type(mask)
    return parts


def _quarters(packed: Bytes) -> Bytes:
    """[n, 32 m] bytes of 2 bits as [n, 128 m]: the lowest bits of 32 bytes first."""
    rows: Bytes = _fields(packed.reshape(len(packed), -1, 32), range(0, 8, 2), 3).swapaxes(2, 3).reshape(len(packed), -1)
    return rows


def _words(blocks: Bytes, at: int, end: int, kind: str) -> npt.NDArray[Any]:
    return np.ascontiguousarray(blocks[:, at:end]).view(kind)


def _signs(packed: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Bytes of sign bits as 8 factors each."""
    return 1 - 2 * _fields(packed.astype(np.uint8), range(8), 1).astype(np.int8)


def _even_signs(codes: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """7 bits of signs as 8 factors: the eighth makes their number even."""
    low = codes.astype(np.uint8)
    parity = low ^ (low >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return _signs(low | ((parity & 1) << 7))


def _nibbles(packed: Bytes) -> Bytes:
    """[n, m] bytes as [n, 2 m] half bytes, the low one first."""
    halves: Bytes = _fields(packed, range(0, 8, 4), 15).reshape(len(packed), -1)
    return halves


def _q3_k(blocks: Bytes) -> tuple[Levels, Floats]:
    n = len(blocks)
    low, high = _quarters(blocks[:, 32:96]), _fields(blocks[:, :32], range(8), 1).swapaxes(1, 2).reshape(n, 256)
    levels = low.astype(np.int8) - 4 * (1 - high.astype(np.int8))
    return levels.reshape(-1, 16), (half(blocks, 108) * _q3_factors(blocks).astype(np.float32)).reshape(-1, 1)


def _q3_factors(blocks: Bytes) -> npt.NDArray[np.int8]:
    """[n, 16]."""
    scales = (blocks[:, None, 96:104] >> np.array([[0], [4]], np.uint8) & 15).reshape(-1, 16)
    tops = (blocks[:, None, 104:108] >> np.array([[0], [2], [4], [6]], np.uint8) & 3).reshape(-1, 16)
    factors: npt.NDArray[np.int8] = (scales | (tops << 4)).astype(np.int8) - np.int8(32)
    return factors


def _tq2_0(blocks: Bytes) -> tuple[Levels, Floats]:
    return _quarters(blocks[:, :64]).astype(np.int8) - 1, half(blocks, 64)


def _digits(packed: Bytes, width: int, count: int) -> Bytes:
    """[n, m * width] bytes of `count` digits to the base 3, the first digits of `width` bytes first. A byte holds a fraction: times 3^i
    without its whole part, the next digit is what times 3 makes whole."""
    powers = np.array([3**i for i in range(count)], np.uint8)
    parts = packed.reshape(len(packed), -1, 1, width) * powers[:, None]
    return (parts.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1)


def _tq1_0(blocks: Bytes) -> tuple[Levels, Floats]:
    parts = [_digits(blocks[:, :32], 32, 5), _digits(blocks[:, 32:48], 16, 5), _digits(blocks[:, 48:52], 4, 4)]
    return np.concatenate(parts, axis=1).astype(np.int8) - 1, half(blocks, 52)


def _nvfp4(blocks: Bytes) -> tuple[Levels, Floats]:
    codes = blocks[:, :4].reshape(-1, 1)
    exponent, mantissa = (codes >> 3 & 15).astype(np.int32), (codes & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + mantissa / 8, exponent - 7)
    scales = np.where(exponent == 0, mantissa * np.float32(2**-9), normal) * np.float32(0.5)
    scales[codes == 0x7F] = 0
    packed = blocks[:, 4:].reshape(-1, 8)
    return np.concatenate([E2M1[packed & 15], E2M1[packed >> 4]], axis=1), scales.astype(np.float32)


def _half_steps(d: Floats, scales: npt.NDArray[Any], unit: float) -> Floats:
    steps: Floats = (d * (np.float32(0.5) + scales.astype(np.float32)) * np.float32(unit)).reshape(-1, 1)
    return steps


def _iq2_xxs(blocks: Bytes) -> tuple[Levels, Floats]:
    words = _words(blocks, 2, 66, "<u4").reshape(len(blocks), 8, 2)
    entries = np.ascontiguousarray(words[..., 0]).view(np.uint8).reshape(len(blocks), 8, 4)
    levels = codebook("iq2_xxs")[entries] * _even_signs(_fields(words[..., 1], range(0, 28, 7), 127))
    return levels.reshape(-1, 32), _half_steps(half(blocks, 0), words[..., 1] >> 28, 0.25)


def _iq2_xs(blocks: Bytes) -> tuple[Levels, Floats]:
    words = _words(blocks, 2, 66, "<u2")
    levels = codebook("iq2_xs")[words & 511] * _even_signs(words >> 9)
    return levels.reshape(-1, 16), _half_steps(half(blocks, 0), _nibbles(blocks[:, 66:74]), 0.25)


def _iq2_s(blocks: Bytes) -> tuple[Levels, Floats]:
    tops = _fields(blocks[:, 66:74], range(0, 8, 2), 3).reshape(len(blocks), 32).astype(np.uint16)
    levels = codebook("iq2_s")[blocks[:, 2:34] | (tops << 8)] * _signs(blocks[:, 34:66])
    return levels.reshape(-1, 16), _half_steps(half(blocks, 0), _nibbles(blocks[:, 74:82]), 0.25)


def _iq3_xxs(blocks: Bytes) -> tuple[Levels, Floats]:
    words = _words(blocks, 66, 98, "<u4")
    signs = _even_signs(_fields(words, range(0, 28, 7), 127)).reshape(len(blocks), 64, 4)
    levels = codebook("iq3_xxs")[blocks[:, 2:66]] * signs
    return levels.reshape(-1, 32), _half_steps(half(blocks, 0), words >> 28, 0.5)


def _iq3_s(blocks: Bytes) -> tuple[Levels, Floats]:
    tops = _fields(blocks[:, 66:74], range(8), 1).reshape(len(blocks), 64).astype(np.uint16)
    levels = codebook("iq3_s")[blocks[:, 2:66] | (tops << 8)] * _signs(blocks[:, 74:106]).reshape(len(blocks), 64, 4)
    factors = 1 + 2 * _nibbles(blocks[:, 106:110]).astype(np.float32)
    return levels.reshape(-1, 32), (half(blocks, 0) * factors).reshape(-1, 1)


def iq1_s_parts(blocks: Bytes) -> tuple[npt.NDArray[np.int8], Floats, Floats]:
    """Entries [groups, 32], what is added to them [groups, 1], scales [groups, 1]."""
    words = _words(blocks, 34, 50, "<u2")
    tops = _fields(words, range(0, 12, 3), 7).reshape(len(blocks), 32)
    entries = codebook("iq1")[blocks[:, 2:34] | (tops << 8)].reshape(-1, 32)
    added = np.where(words & 0x8000, -_DELTA, _DELTA).reshape(-1, 1)
    scales = half(blocks, 0) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    return entries, added, scales.reshape(-1, 1)


def _iq1_s(blocks: Bytes) -> tuple[Levels, Floats]:
    entries, added, scales = iq1_s_parts(blocks)
    return entries + added, scales


def _iq1_m(blocks: Bytes) -> tuple[Levels, Floats]:
    n = len(blocks)
    words = _words(blocks, 48, 56, "<u2")
    d = np.bitwise_or.reduce((words & 0xF000) >> np.array([12, 8, 4, 0], np.uint16), axis=1).view(np.float16)
    tops = _nibbles(blocks[:, 32:48])
    entries = codebook("iq1")[blocks[:, :32] | ((tops & 7).astype(np.uint16) << 8)]
    added = np.where(tops & 8, -_DELTA, _DELTA)[..., None]
    factors = (2 * _fields(words, range(0, 12, 3), 7).reshape(n, 16) + 1).astype(np.float32)
    return (entries + added).reshape(-1, 16), (d.astype(np.float32)[:, None] * factors).reshape(-1, 1)


def factors_of(name: str, blocks: Bytes) -> tuple[npt.NDArray[np.float16], npt.NDArray[Any]]:
    """d [n], and whole factors [n, 16] of each 16 values: of iq2 and iq1 of eighths."""
    if name == "q3_k":
        return _words(blocks, 108, 110, "<f2")[:, 0], _q3_factors(blocks)
    if name == "iq1_m":
        words = _words(blocks, 48, 56, "<u2")
        d = np.bitwise_or.reduce((words & 0xF000) >> np.array([12, 8, 4, 0], np.uint16), axis=1).view(np.float16)
        return d, 2 * _fields(words, range(0, 12, 3), 7).reshape(len(blocks), 16) + 1
    d = _words(blocks, 0, 2, "<f2")[:, 0]
    if name in ("iq2_xs", "iq2_s"):
        return d, 2 * _nibbles(blocks[:, -8:]) + 1
    scales = _words(blocks, 2, 66, "<u4")[:, 1::2] >> 28 if name == "iq2_xxs" else _words(blocks, 34, 50, "<u2") >> 12 & 7
    return d, (2 * scales + 1).repeat(2, axis=1)


LEVELS: dict[str, tuple[int, int, Callable[[Bytes], tuple[Levels, Floats]]]] = {
    "q3_k": (256, 110, _q3_k),
    "tq1_0": (256, 54, _tq1_0),
    "tq2_0": (256, 66, _tq2_0),
    "nvfp4": (64, 36, _nvfp4),
    "iq1_s": (256, 50, _iq1_s),
    "iq1_m": (256, 56, _iq1_m),
    "iq2_xxs": (256, 66, _iq2_xxs),
    "iq2_xs": (256, 74, _iq2_xs),
    "iq2_s": (256, 82, _iq2_s),
    "iq3_xxs": (256, 98, _iq3_xxs),
    "iq3_s": (256, 110, _iq3_s),
}
"""format -> values and bytes of a block, and its levels [groups, values of a group] with their scales [groups, 1]"""


def q2_k(blocks: Bytes, out: Floats) -> None:
    """16 bytes of a scale and a minimum of 4 bits each, 64 of 2 bits, d, dmin: 16 groups of 16, q (d scale) - dmin min."""
    out[:] = _quarters(blocks[:, 16:80])
    groups = out.reshape(len(blocks), 16, 16)
    groups *= (half(blocks, 80) * (blocks[:, :16] & 15))[..., None]
    groups -= (half(blocks, 82) * (blocks[:, :16] >> 4))[..., None]
