"""Gemma 3: every image as one tile of a fixed number of rows; with "high" detail, long ones also in pieces (pan and scan)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of, media_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import patches_of, tiles_within
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span


class Gemma3Processor:
    """A Processor. A prompt's placeholder is the token that begins an image."""

    kinds: tuple[MediaKind, ...] = ("image",)
    default_tokens = 2048
    """more than the whole and four pieces have"""

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor("gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self._tokenizer = folder.tokenizer
        options = {"min_crop_size": 256, "max_num_crops": 4, "min_ratio_to_activate": 1.2}
        names = {f"pan_and_scan_{name}": default for name, default in options.items()}
        self._pan_and_scan = {name: getattr(self._processor, name, None) or default for name, default in names.items()}
        self._pan_and_scan["do_pan_and_scan"] = True
        self._row_id = folder.number("image_token_index", folder.number("image_token_id", 262144))
        self._begin = folder.number("boi_token_index", 255999)
        self._end = folder.number("eoi_token_index", 256000)
        self._tile_rows = folder.number("mm_tokens_per_image", 256)
        self._patch = folder.vision("patch_size", 14)
        self._side = folder.vision("image_size", 896)
        self.row_ids = frozenset({self._row_id})
        self.placeholders: dict[MediaKind, int] = {"image": self._begin}
        self.image_token = folder.tokenizer.token_text(self._begin)

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        return len(self._tokens(self._num_crops(shape, self._options(shape, view))))

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        return self._side * (1 + self._num_crops(shape, self._options(shape, view))), self._side

    def _num_crops(self, shape: Shape, options: dict[str, Any]) -> int:
        if not options:
            return 0
        blank = np.broadcast_to(np.uint8(0), (3, shape.height, shape.width))  # has a shape, and takes no memory
        settings = {name: value for name, value in options.items() if name != "do_pan_and_scan"}
        return len(self._processor.pan_and_scan(blank, **settings))

    def _options(self, shape: Shape, view: View) -> dict[str, Any]:
        """Options of transformers' processor: as many pieces as the view allows, or none."""
        allowed = tiles_within(view.pixels, self._side) - 1
        if view.detail not in ("high", "original"):
            return {}
        most = int(self._pan_and_scan["pan_and_scan_max_num_crops"])
        for count in range(min(most, allowed), min(most, 2) - 1, -1):
            options = {**self._pan_and_scan, "pan_and_scan_max_num_crops": count}
            if not 0 < view.max_tokens < len(self._tokens(self._num_crops(shape, options))):
                return options
        return {}

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        options = self._options(Shape(width, height), view)
        found = run_processor(self._processor, [clip.frames[0]], **options)
        tiles, num_crops = found["pixel_values"], int(np.ravel(found["num_crops"])[0])
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, options),
            tokens=tuple(self._tokens(num_crops)),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch),
            grid=(len(tiles), tiles.shape[2] // self._patch, tiles.shape[3] // self._patch),
            newlines=(0 if num_crops else 2, 2),
        )

    def _tokens(self, num_crops: int) -> list[int]:
        """Line ends before and after are `newlines`: they join those of the text around."""
        tile = [self._begin, *[self._row_id] * self._tile_rows, self._end]
        if not num_crops:
            return tile
        ids = [*self._encode("Here is the original image \n\n"), *tile]
        ids += [*self._encode("\n\n and here are some crops to help you see better \n\n"), *tile]
        for _ in range(num_crops - 1):
            ids += [*self._encode("\n\n \n\n"), *tile]
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
