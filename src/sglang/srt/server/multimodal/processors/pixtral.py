"""Pixtral and Mistral 3: images of any size, row by row, with a token after each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import (
    LOW_DETAIL_PIXELS,
    MAX_SIDE,
    ModelFolder,
    fingerprint_of,
    media_hash,
    run_processor,
)
from sglang.srt.server.multimodal.processors.tiles import patches_of
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span


def is_pixtral(folder: ModelFolder) -> bool:
    vision = folder.config.get("vision_config")
    return isinstance(vision, dict) and vision.get("model_type") == "pixtral"


class PixtralProcessor:
    """A Processor."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 1280

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor("pixtral.image_processing_pil_pixtral", "PixtralImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", folder.number("image_token_index", 10))
        self._line_end, self._end = folder.token_id("[IMG_BREAK]"), folder.token_id("[IMG_END]")
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._patch = folder.vision("patch_size", 16)
        self._merge = folder.number("spatial_merge_size", 2) if folder.config["model_type"] == "mistral3" else 1
        self._unit = self._patch * self._merge
        if not 0 < self._unit <= MAX_SIDE:
            raise ModelError(f"{folder.path}: squares of {shown(self._unit)} pixels a side cannot be made of an image")
        longest = self._processor.size.longest_edge
        self._longest = int(longest or max(self._processor.size.height, self._processor.size.width))

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        down, across = self._squares(shape, self._edge(shape, view))
        return down * (across + 1)

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        down, across = self._squares(shape, self._edge(shape, view))
        return across * self._unit, down * self._unit

    def _squares(self, shape: Shape, edge: int) -> tuple[int, int]:
        """Rows down and across of an image whose longer side is at most `edge`: it is made smaller and never larger, and its
        sides are rounded up (transformers' rule)."""
        ratio = max(shape.height / edge, shape.width / edge)
        height, width = shape.height, shape.width
        if ratio > 1:
            height, width = int(height / ratio), int(width / ratio)
        if not height or not width:
            raise RequestError("the model cannot take this image: it is too thin", "image_url")
        return -(-height // self._unit), -(-width // self._unit)

    def _edge(self, shape: Shape, view: View) -> int:
        """The longest side within the view."""
        wanted = view.pixels
        if wanted.least:
            raise RequestError("min_pixels: this model makes no image larger", "min_pixels")
        most = min(wanted.most or 1 << 40, LOW_DETAIL_PIXELS if view.detail == "low" else 1 << 40)

        def fits(edge: int) -> bool:
            down, across = self._squares(shape, edge)
            return down * across * self._unit**2 <= most and not 0 < view.max_tokens < down * (across + 1)

        thinnest = -(-max(shape.width, shape.height) // min(shape.width, shape.height))
        low, high = min(max(self._unit, thinnest), self._longest), self._longest
        if fits(high):
            return high
        while high - low > 1:  # tokens grow with the edge
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        shape = Shape(width, height)
        edge = self._edge(shape, view)
        squares = {"height": self._unit, "width": self._unit}
        found = run_processor(self._processor, [clip.frames[0]], patch_size=squares, size={"longest_edge": edge})
        image = found["pixel_values"]
        h, w = image.shape[2] // self._patch, image.shape[3] // self._patch
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, edge),
            tokens=self._tokens(h // self._merge, w // self._merge),
            row_id=self._row_id,
            pixels=patches_of(np.asarray(image), self._patch, self._merge),
            grid=(1, h, w),
        )

    def _tokens(self, down: int, across: int) -> tuple[int, ...]:
        line = (*(self._row_id,) * across, self._line_end)
        return (*(line * down)[:-1], self._end)

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
