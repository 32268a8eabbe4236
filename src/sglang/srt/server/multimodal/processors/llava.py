"""LLaVA-OneVision: a picture as a whole and, if it is alone, in tiles that fit its shape, with a line end after each line."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Detail
from sglang.srt.server.multimodal.processors.base import Frame, ModelFolder, fingerprint_of, picture_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import Float32, patches_of
from sglang.srt.server.multimodal.spans import Int32, Picture, Span

Resample = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""(sources, weights), [rows, 4]"""


class LlavaProcessor:
    """A Processor. Several pictures in a request, or "low" detail, are shown as wholes only, as the model was trained."""

    kinds: tuple[MediaKind, ...] = ("image",)

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor(
            "llava_onevision.image_processing_pil_llava_onevision", "LlavaOnevisionImageProcessorPil"
        )
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", folder.number("image_token_index", 151646))
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._size, self._patch = folder.vision("image_size", 384), folder.vision("patch_size", 14)
        self._side = self._size // self._patch
        ratio = str(folder.config.get("vision_aspect_ratio") or "anyres_max_9")
        if not ratio.startswith("anyres_max_") or not ratio[11:].isdecimal() or len(ratio) > 14:
            raise ModelError(f"{folder.path / 'config.json'}: vision_aspect_ratio {shown(ratio)} is not supported")
        self._max_tiles = int(ratio[11:])

    def num_tokens(self, kind: MediaKind, shape: Shape, detail: Detail, alone: bool) -> int:
        count = 1
        if alone and detail != "low":
            down, across = self._tile_grid(shape.height, shape.width)
            count += down * across
        return len(self._plan(count, shape.height, shape.width)[0])

    def process(self, kind: MediaKind, frames: Sequence[Frame], detail: Detail, alone: bool) -> Picture:
        image = frames[0]
        in_tiles = alone and detail != "low"
        # Two pictures in one sample are what keeps transformers' processor from making tiles.
        found = run_processor(self._processor, [image] if in_tiles else [[image, image]])
        tiles = found["pixel_values"][0]
        count = len(tiles) if in_tiles else 1
        sources, weights = self._plan(count, *image.shape[:2])
        return Picture(
            kind=kind,
            mm_hash=picture_hash(self._fingerprint + bytes([in_tiles]), kind, frames, "auto"),
            tokens=(self._row_id,) * len(sources),
            row_id=self._row_id,
            pixels=patches_of(tiles[:count], self._patch),
            grid=(count, self._side, self._side),
            facts={"index": sources.astype(np.int32).tobytes(), "weight": weights.astype(np.float32).tobytes()},
        )

    def _plan(self, tiles: int, height: int, width: int) -> Resample:
        """Which projected rows become which rows: the whole, then the lines of the tiles' common grid without the margins that
        fitting the picture into tiles has made; resampled if it is larger than `max_tiles` tiles."""
        per_tile = self._side**2
        end = tiles * per_tile
        whole = _plain(np.arange(per_tile))
        if tiles == 1:
            return _join([whole, _plain(np.array([end]))])
        down, across = self._tile_grid(height, width)
        grid = np.arange(per_tile, end).reshape(down, across, self._side, self._side).transpose(0, 2, 1, 3)
        grid = _without_margins(grid.reshape(down * self._side, across * self._side), height, width)
        lines, columns = grid.shape
        ratio = math.sqrt(lines * columns / (self._max_tiles * per_tile))
        if ratio > 1.1:
            sources, weights = _bilinear(grid, int(lines // ratio), int(columns // ratio))
            lines, columns = int(lines // ratio), int(columns // ratio)
        else:
            sources, weights = _plain(grid.reshape(-1))
        newline = _plain(np.array([end]))
        parts = [whole]
        for line in range(lines):
            cut = slice(line * columns, (line + 1) * columns)
            parts += [(sources[cut], weights[cut]), newline]
        return _join(parts)

    def _tile_grid(self, height: int, width: int) -> tuple[int, int]:
        """Tiles down and across, of the resolution that wastes least (transformers' rule)."""
        best, best_fit = (0, 0), (-1, 0)
        for target_height, target_width in self._processor.image_grid_pinpoints:
            scale = min(target_width / width, target_height / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            fit = (used, used - target_height * target_width)
            if fit > best_fit:
                best, best_fit = (target_height, target_width), fit
        return best[0] // self._size, best[1] // self._size

    def positions(self, length: int, pictures: Sequence[tuple[Picture, list[Span]]]) -> tuple[Int32, int] | None:
        return None


def _plain(rows: npt.NDArray[np.int64]) -> Resample:
    """Rows taken as they are."""
    return np.repeat(rows[:, None], 4, axis=1), np.tile(np.array([1.0, 0.0, 0.0, 0.0]), (len(rows), 1))


def _join(parts: Sequence[Resample]) -> Resample:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _without_margins(grid: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.int64]:
    lines, columns = grid.shape
    if width / height > columns / lines:
        margin = (lines - int(round(height * (columns / width), 7))) // 2
        return grid[margin : lines - margin]
    margin = (columns - int(round(width * (lines / height), 7))) // 2
    return grid[:, margin : columns - margin]


def _bilinear(grid: npt.NDArray[np.int64], lines: int, columns: int) -> Resample:
    """Bilinear interpolation with half-pixel centres."""

    def axis(size: int, old: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float32]:
        at = np.maximum((np.arange(size) + 0.5) * (np.float32(old) / np.float32(size)) - 0.5, 0).astype(np.float32)
        low = at.astype(np.int64)
        return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)

    top, bottom, down = axis(lines, grid.shape[0])
    left, right, across = axis(columns, grid.shape[1])
    corners = [grid[np.ix_(rows, cols)] for rows in (top, bottom) for cols in (left, right)]
    v, h = down[:, None].astype(np.float64), across[None, :].astype(np.float64)
    weights = [(1 - v) * (1 - h), (1 - v) * h, v * (1 - h), v * h]
    return np.stack(corners, axis=-1).reshape(-1, 4), np.stack(weights, axis=-1).reshape(-1, 4)
