"""LLaVA 1.5: an image as one tile. LLaVA-NeXT: as a whole and in tiles that fit its shape, with a line end after each line; OneVision:
the tiles only if it is alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip, Frame
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of, media_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import NO_LIMIT, Float32, check_side, patches_of, tiles_within
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span

Grid = tuple[int, int]
"""tiles down and across"""
Resample = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""(sources, weights), [rows, 4]"""


CLASSES = {
    "CLIPImageProcessor": "clip.image_processing_pil_clip",
    "LlavaImageProcessor": "llava.image_processing_pil_llava",
    "SiglipImageProcessor": "siglip.image_processing_pil_siglip",
}
"""what preprocessor_config.json may name of LLaVA 1.5 -> where transformers has it"""
MAX_RATIO = 200
"""of sides, where the shorter one is brought to a size: the longer one follows"""


class LlavaProcessor:
    """A Processor for LLaVA 1.5."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 1024
    """more than a tile has"""

    def __init__(self, folder: ModelFolder) -> None:
        name = folder.processor_type("CLIPImageProcessor")
        if name not in CLASSES:
            raise ModelError(f"{folder.path}: image_processor_type {shown(name)} is not supported; known: {', '.join(CLASSES)}")
        self._processor = folder.image_processor(CLASSES[name], f"{name}Pil")
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", folder.number("image_token_index", 32000))
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._size, self._patch = folder.vision("image_size", 336), folder.vision("patch_size", 14)
        vision, drops = folder.config["vision_config"], folder.config.get("vision_feature_select_strategy", "default")
        first = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
        self._rows = (self._size // self._patch) ** 2 + int(first) - int(drops == "default")

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        tiles_within(view.pixels, self._size)
        if max(shape.width, shape.height) > MAX_RATIO * min(shape.width, shape.height):
            raise RequestError(
                f"the model cannot take this image: one side is more than {MAX_RATIO} times the other", "image_url"
            )
        return self._rows

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        return self._size, self._size

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        self.num_tokens(kind, Shape(clip.frames[0].shape[1], clip.frames[0].shape[0]), view)
        tiles = run_processor(self._processor, [clip.frames[0]])["pixel_values"]
        side = self._size // self._patch
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, None),
            tokens=(self._row_id,) * self._rows,
            row_id=self._row_id,
            pixels=patches_of(check_side(tiles, self._size), self._patch),
            grid=(1, side, side),
        )

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None


class LlavaNextProcessor:
    """A Processor for LLaVA-NeXT. "low" detail shows the whole alone."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 4096
    row_id, side, patch = 32000, 336, 14
    """where the config does not say"""

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = self.create(folder)
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", folder.number("image_token_index", self.row_id))
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._size, self._patch = folder.vision("image_size", self.side), folder.vision("patch_size", self.patch)
        self._side = self._size // self._patch
        self._max_tiles = NO_LIMIT

    def create(self, folder: ModelFolder) -> Any:
        return folder.image_processor("llava_next.image_processing_pil_llava_next", "LlavaNextImageProcessorPil")

    def shows_tiles(self, view: View) -> bool:
        """Whether an image is shown in tiles at all."""
        return view.detail != "low"

    def tiles_of(self, image: Frame, grid: Grid | None) -> npt.NDArray[Any]:
        """The whole, and then the tiles of the grid. [tiles, channels, side, side]"""
        down, across = grid or (1, 1)
        resolution = [[down * self._size, across * self._size]]
        found: npt.NDArray[Any] = run_processor(self._processor, [image], image_grid_pinpoints=resolution)["pixel_values"][0]
        return found if grid else found[:1]

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        return self._count(self._tile_grid(shape, view), shape)

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        down, across = self._tile_grid(shape, view) or (1, 1)
        return across * self._size, down * self._size

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        image = clip.frames[0]
        shape = Shape(image.shape[1], image.shape[0])
        grid = self._tile_grid(shape, view)
        tiles = check_side(self.tiles_of(image, grid), self._size)
        sources, weights = self._plan(grid, shape)
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, grid),
            tokens=(self._row_id,) * len(sources),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch),
            grid=(len(tiles), self._side, self._side),
            facts={"index": sources.astype(np.int32).tobytes(), "weight": weights.astype(np.float32).tobytes()},
        )

    def _tile_grid(self, shape: Shape, view: View) -> Grid | None:
        """Tiles down and across, of the resolution that wastes least (transformers' rule) of those within the view; None: the
        whole alone."""
        allowed = tiles_within(view.pixels, self._size)
        if not self.shows_tiles(view):
            return None
        best: Grid | None = None
        best_fit = (-1, 0)
        for target_height, target_width in self._processor.image_grid_pinpoints:
            grid = target_height // self._size, target_width // self._size
            scale = min(target_width / shape.width, target_height / shape.height)
            used = min(int(shape.width * scale) * int(shape.height * scale), shape.width * shape.height)
            fit = (used, used - target_height * target_width)
            within = grid[0] * grid[1] <= allowed and not 0 < view.max_tokens < self._count(grid, shape)
            if fit > best_fit and within:
                best, best_fit = grid, fit
        return best

    def _count(self, grid: Grid | None, shape: Shape) -> int:
        """Rows of the plan: those of the whole, and lines with their ends."""
        lines, columns = (1, 0) if grid is None else self._lines(grid, shape)
        return self._side**2 + lines * (columns + 1)

    def _lines(self, grid: Grid, shape: Shape) -> tuple[int, int]:
        """Lines and columns of the tiles' common grid: without margins, and brought to the area of `max_tiles` tiles."""
        lines, columns = (len(part) for part in _inside(grid[0] * self._side, grid[1] * self._side, shape.height, shape.width))
        ratio = math.sqrt(lines * columns / (self._max_tiles * self._side**2))
        return (int(lines // ratio), int(columns // ratio)) if ratio > 1.1 else (lines, columns)

    def _plan(self, grid: Grid | None, shape: Shape) -> Resample:
        """Which projected rows become which rows: the whole, then the lines of the tiles' common grid without the margins that
        fitting the image into tiles has made; resampled if it is larger than `max_tiles` tiles."""
        per_tile = self._side**2
        whole = _plain(np.arange(per_tile))
        if grid is None:
            return _join([whole, _plain(np.array([per_tile]))])
        down, across = grid
        end = (1 + down * across) * per_tile
        table = np.arange(per_tile, end).reshape(down, across, self._side, self._side).transpose(0, 2, 1, 3)
        table = table.reshape(down * self._side, across * self._side)
        rows, cols = _inside(len(table), table.shape[1], shape.height, shape.width)
        table = table[rows.start : rows.stop, cols.start : cols.stop]
        lines, columns = self._lines(grid, shape)
        sources, weights = _plain(table.reshape(-1)) if (lines, columns) == table.shape else _bilinear(table, lines, columns)
        newline = _plain(np.array([end]))
        parts = [whole]
        for line in range(lines):
            cut = slice(line * columns, (line + 1) * columns)
            parts += [(sources[cut], weights[cut]), newline]
        return _join(parts)

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None


class OneVisionProcessor(LlavaNextProcessor):
    """A Processor for LLaVA-OneVision. Several images in a request are shown as wholes only, as the model was trained."""

    row_id, side, patch = 151646, 384, 14

    def __init__(self, folder: ModelFolder) -> None:
        super().__init__(folder)
        ratio = str(folder.config.get("vision_aspect_ratio") or "anyres_max_9")
        if not ratio.startswith("anyres_max_") or not ratio[11:].isdecimal() or len(ratio) > 14:
            raise ModelError(f"{folder.path / 'config.json'}: vision_aspect_ratio {shown(ratio)} is not supported")
        self._max_tiles = int(ratio[11:])

    def create(self, folder: ModelFolder) -> Any:
        name = "llava_onevision.image_processing_pil_llava_onevision"
        return folder.image_processor(name, "LlavaOnevisionImageProcessorPil")

    def shows_tiles(self, view: View) -> bool:
        return view.alone and view.detail != "low"

    def tiles_of(self, image: Frame, grid: Grid | None) -> npt.NDArray[Any]:
        # Two images in one sample are what keeps transformers' processor from making tiles.
        only = None if grid is None else [[grid[0] * self._size, grid[1] * self._size]]
        found = run_processor(self._processor, [image] if grid else [[image, image]], image_grid_pinpoints=only)
        tiles: npt.NDArray[Any] = found["pixel_values"][0]
        return tiles if grid else tiles[:1]


def _plain(rows: npt.NDArray[np.int64]) -> Resample:
    """Rows taken as they are."""
    return np.repeat(rows[:, None], 4, axis=1), np.tile(np.array([1.0, 0.0, 0.0, 0.0]), (len(rows), 1))


def _join(parts: Sequence[Resample]) -> Resample:
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _inside(lines: int, columns: int, height: int, width: int) -> tuple[range, range]:
    """Which lines and columns of a grid show the image that was fitted into it; the rest are margins."""
    if width / height > columns / lines:
        margin = (lines - int(round(height * (columns / width), 7))) // 2
        return range(margin, lines - margin), range(columns)
    margin = (columns - int(round(width * (lines / height), 7))) // 2
    return range(lines), range(margin, columns - margin)


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
