"""Images as square tiles of one size, for encoders of fixed input size."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.errors import ModelError, RequestError
from sglang.srt.server.multimodal.inputs import Pixels

Float32 = npt.NDArray[np.float32]
NO_LIMIT = 1 << 30


def tiles_within(wanted: Pixels, side: int) -> int:
    """The number of tiles of `side` pixels a side that the view allows, at least one. Raises RequestError for settings that
    tiles cannot meet."""
    if wanted.least:
        raise RequestError("min_pixels: this model cuts images into tiles of one size, and makes none larger", "min_pixels")
    return max(1, wanted.most // side**2) if wanted.most else NO_LIMIT


def check_side(tiles: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """`tiles`, if they are as large as the encoder wants them. Raises ModelError."""
    if tiles.shape[-2:] != (side, side):
        found = " x ".join(str(n) for n in tiles.shape[-2:])
        raise ModelError(f"the settings for images make tiles of {found} pixels, and the encoder's are {side} x {side}")
    return tiles


def patches_of(tiles: npt.NDArray[Any], patch: int, merge: int = 1) -> Float32:
    """[tiles, channels, side, side] to [patches, channels * patch * patch], row by row, or in the order of squares of
    `merge` x `merge` patches. What is left at the right and lower edge, less than a patch, is not seen, as with a convolution of
    that stride."""
    n, channels, height, width = tiles.shape
    down, across = height // patch // merge, width // patch // merge
    whole = tiles[:, :, : down * merge * patch, : across * merge * patch]
    cut = whole.reshape(n, channels, down, merge, patch, across, merge, patch)
    flat = cut.transpose(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, channels * patch * patch)
    return np.ascontiguousarray(flat, dtype=np.float32)
