"""InternVL 3: an image in tiles, as many and laid out as fit its shape, and then as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of, media_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import check_side, patches_of, tiles_within
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span

MAX_TILES = 256


class InternVLProcessor:
    """A Processor. "low" detail shows the whole alone."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 4096
    """more than the twelve tiles and the whole that published models make of an image"""

    def __init__(self, folder: ModelFolder) -> None:
        name = "got_ocr2.image_processing_pil_got_ocr2"  # transformers has InternVL's there
        self._processor = folder.image_processor(name, "GotOcr2ImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", 151667)
        if not 0 < int(self._processor.max_patches) <= MAX_TILES:
            raise ModelError(f"{folder.path}: max_patches must be 1 to {MAX_TILES}, got {shown(self._processor.max_patches)}")
        self._begin, self._end = folder.token_id("<img>"), folder.token_id("</img>")
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._size, self._patch = folder.vision("image_size", 448), folder.vision("patch_size", 14)
        self._merge = round(1 / float(folder.config.get("downsample_ratio", 0.5)))
        self._tile_rows = (self._size // self._patch // self._merge) ** 2

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        return self._count(self._num_tiles(shape, self._options(shape, view)))

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        return self._size * self._num_tiles(shape, self._options(shape, view)), self._size

    def _num_tiles(self, shape: Shape, options: dict[str, Any]) -> int:
        return int(self._processor.get_number_of_image_patches(shape.height, shape.width, options))

    def _count(self, tiles: int) -> int:
        return tiles * self._tile_rows + 2

    def _options(self, shape: Shape, view: View) -> dict[str, Any]:
        """Options of transformers' processor: as many tiles as the view allows, or none."""
        allowed = tiles_within(view.pixels, self._size)
        least, most = int(self._processor.min_patches), int(self._processor.max_patches)
        if view.detail != "low":
            for count in range(most, max(least, 1) - 1, -1):
                options = {"crop_to_patches": True, "max_patches": count}
                tiles = self._num_tiles(shape, options)
                if tiles <= allowed and not 0 < view.max_tokens < self._count(tiles):
                    return options
        return {"crop_to_patches": False}

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        options = self._options(Shape(width, height), view)
        tiles = check_side(run_processor(self._processor, [clip.frames[0]], **options)["pixel_values"], self._size)
        side = self._size // self._patch
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, options),
            tokens=(self._begin, *[self._row_id] * (len(tiles) * self._tile_rows), self._end),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch, self._merge),
            grid=(len(tiles), side, side),
        )

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
