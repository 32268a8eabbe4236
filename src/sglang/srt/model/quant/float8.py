"""float8 of the kind e4m3fn: a sign, 4 bits of exponent (bias 7), 3 of fraction, no infinity; 0x7f and 0xff are NaN.

Source: "FP8 formats for deep learning", arXiv 2209.05433.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _values() -> Floats:
    """The value of each of the 256 bytes."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, (code & 7) / 8
    value = np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7.0))
    value[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -value, value).astype(np.float32)


F8_VALUES = _values()


def f8_values(data: Bytes, scale: Floats | None) -> Floats:
    """Rows of bytes times each row's scale."""
    values: Floats = F8_VALUES[data]
    if scale is not None:
        values *= scale.reshape(-1, *[1] * (values.ndim - 1))
    return values


def tile_values(data: Bytes, scales: Floats, block: tuple[int, int]) -> Floats:
    """A matrix [n, k] in tiles of `block` rows and columns, each with its scale: scales is [ceil(n / rows), ceil(k / cols)]."""
    n, k = data.shape
    rows, columns = block
    values: Floats = F8_VALUES[data]
    for i in range(0, n, rows):
        values[i : i + rows] *= np.repeat(scales[i // rows], columns)[:k]
    return values
