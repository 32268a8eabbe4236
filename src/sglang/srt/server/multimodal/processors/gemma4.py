"""Gemma 4: images of any shape, each brought to the size that fills one of a few budgets of tokens."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import numpy as np

from sglang.srt.errors import ModelError, RequestError
from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of, media_hash, run_processor
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span

MODULE = "gemma4.image_processing_pil_gemma4"
BUDGETS = (70, 140, 280, 560, 1120)
"""tokens of an image (source: the model card)"""
LOW_DETAIL = BUDGETS[0]


class Gemma4Processor:
    """A Processor. An image has its tokens, one that begins it and one that ends it."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = BUDGETS[-1] + 2

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor(MODULE, "Gemma4ImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", 258880)
        self._begin, self._end = folder.number("boi_token_id", 255999), folder.number("eoi_token_id", 258882)
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._patch, self._pool = folder.vision("patch_size", 16), folder.vision("pooling_kernel_size", 3)
        theirs = self._processor.patch_size, self._processor.pooling_kernel_size
        if theirs != (self._patch, self._pool):
            raise ModelError(
                f"{folder.path}: patch_size and pooling_kernel_size are {theirs} in the settings for images, and "
                f"{(self._patch, self._pool)} in vision_config"
            )
        self._square = (self._patch * self._pool) ** 2
        self._size_within = importlib.import_module(f"transformers.models.{MODULE}").get_aspect_ratio_preserving_size

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        width, height = self.seen_size(shape, view)
        return width * height // self._square + 2

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        """(width, height) that an image is brought to. Raises RequestError for one that is too thin."""
        patches = self._budget(view) * self._pool**2
        try:
            height, width = self._size_within(shape.height, shape.width, self._patch, patches, self._pool)
        except ValueError as error:
            raise RequestError(f"the model cannot take this image: {error}", "image_url") from error
        return width, height

    def _budget(self, view: View) -> int:
        """Tokens of an image within the view: the publisher's number, or that which the request's pixels ask for."""
        wanted = view.pixels
        most = min((view.max_tokens or BUDGETS[-1] + 2) - 2, wanted.most // self._square if wanted.most else BUDGETS[-1])
        usual = LOW_DETAIL if view.detail == "low" else int(self._processor.max_soft_tokens)
        if wanted.least:
            usual = next((n for n in BUDGETS if n * self._square >= wanted.least), BUDGETS[-1])
        allowed = [n for n in BUDGETS if n <= min(usual, most)]
        return allowed[-1] if allowed else BUDGETS[0]

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        across, down = (size // self._patch for size in self.seen_size(Shape(width, height), view))
        budget = self._budget(view)
        found = run_processor(self._processor, [clip.frames[0]], max_soft_tokens=budget)
        rows = down * across // self._pool**2
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, budget),
            tokens=(self._begin, *(self._row_id,) * rows, self._end),
            row_id=self._row_id,
            pixels=np.ascontiguousarray(found["pixel_values"][0, : down * across], dtype=np.float32),
            grid=(1, down, across),
        )

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
