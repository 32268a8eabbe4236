"""SmolVLM and Idefics3: a picture is cut into tiles, each introduced by its row and column, and shown once more as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Detail
from sglang.srt.server.multimodal.processors.base import (
    Frame,
    ModelFolder,
    fingerprint_of,
    picture_hash,
    run_processor,
)
from sglang.srt.server.multimodal.processors.tiles import patches_of
from sglang.srt.server.multimodal.spans import Int32, Picture, Span


class IdeficsProcessor:
    """A Processor. "low" detail shows the whole alone."""

    kinds: tuple[MediaKind, ...] = ("image",)

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

    def num_tokens(self, kind: MediaKind, shape: Shape, detail: Detail, alone: bool) -> int:
        options = {"do_image_splitting": False} if detail == "low" else {}
        _, rows, columns = self._processor.get_number_of_image_patches(shape.height, shape.width, options)
        return len(self._tokens(rows, columns))

    def process(self, kind: MediaKind, frames: Sequence[Frame], detail: Detail, alone: bool) -> Picture:
        found = run_processor(
            self._processor, [frames[0]], do_image_splitting=False if detail == "low" else None, return_row_col_info=True
        )
        tiles = found["pixel_values"][0]
        rows, columns = int(np.ravel(found["rows"])[0]), int(np.ravel(found["cols"])[0])
        return Picture(
            kind=kind,
            mm_hash=picture_hash(self._fingerprint, kind, frames, detail),
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

    def positions(self, length: int, pictures: Sequence[tuple[Picture, list[Span]]]) -> tuple[Int32, int] | None:
        return None
