"""SmolVLM and Idefics3: an image is cut into tiles, each introduced by its row and column, and shown once more as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import (
    ModelFolder,
    fingerprint_of,
    media_hash,
    run_processor,
)
from sglang.srt.server.multimodal.processors.tiles import patches_of, tiles_within
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span


class IdeficsProcessor:
    """A Processor. "low" detail shows the whole alone."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 4096
    """more than the sixteen tiles and the whole that published models make of an image"""

    def __init__(self, folder: ModelFolder) -> None:
        family = str(folder.config["model_type"])
        name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[family]
        self._processor = folder.image_processor(f"{family}.image_processing_pil_{family}", f"{name}ImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        self._row_id = folder.number("image_token_id", 49190)
        self.placeholders: dict[MediaKind, int] = {"image": self._row_id}
        self.image_token = folder.tokenizer.token_text(self._row_id)
        self._patch = folder.vision("patch_size", 32)
        self._merge = folder.number("scale_factor", 2)
        side = folder.vision("image_size", 224) // self._patch
        self._tile_rows = (side // self._merge) ** 2
        self._tokenizer = folder.tokenizer
        self._longest = int(self._processor.size["longest_edge"])
        self._side = int(self._processor.max_image_size["longest_edge"])

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        return len(self._tokens(*self._grid(shape, self._options(shape, view))))

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        rows, columns = self._grid(shape, self._options(shape, view))
        return max(columns, 1) * self._side, max(rows, 1) * self._side

    def _grid(self, shape: Shape, options: dict[str, Any]) -> tuple[int, int]:
        """Tiles down and across; none, where the whole is all that is shown."""
        _, rows, columns = self._processor.get_number_of_image_patches(shape.height, shape.width, options)
        return rows, columns

    def _options(self, shape: Shape, view: View) -> dict[str, Any]:
        """Options of transformers' processor: the longest side, in whole tiles, with which an image is within the view."""
        allowed = tiles_within(view.pixels, self._side)
        if view.detail == "low":
            return {"do_image_splitting": False}
        for longest in (0, *range((self._longest - 1) // self._side * self._side, 0, -self._side)):
            options: dict[str, Any] = {"size": {"longest_edge": longest}} if longest else {}
            rows, columns = self._grid(shape, options)
            if rows * columns <= allowed and not 0 < view.max_tokens < len(self._tokens(rows, columns)):
                return options
        return {"do_image_splitting": False}

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        options = self._options(Shape(width, height), view)
        found = run_processor(self._processor, [clip.frames[0]], return_row_col_info=True, **options)
        tiles = found["pixel_values"][0]
        rows, columns = int(np.ravel(found["rows"])[0]), int(np.ravel(found["cols"])[0])
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, options),
            tokens=tuple(self._tokens(rows, columns)),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch, self._merge),
            grid=(len(tiles), tiles.shape[2] // self._patch, tiles.shape[3] // self._patch),
        )

    def _tokens(self, rows: int, columns: int) -> list[int]:
        """The text around the rows is tokenized piece by piece: special tokens stand on both sides of each."""
        rows_of_tile = [self._row_id] * self._tile_rows
        ids: list[int] = []
        for row in range(rows):
            for column in range(columns):
                ids += [*self._encode(f"<fake_token_around_image><row_{row + 1}_col_{column + 1}>"), *rows_of_tile]
            ids += self._encode("\n" if row + 1 < rows else "\n\n")
        whole = self._encode("<fake_token_around_image><global-img>")
        return [*ids, *whole, *rows_of_tile, *self._encode("<fake_token_around_image>")]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
