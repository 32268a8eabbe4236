"""Llama 3.2 Vision: an image as up to four tiles laid out as fits it best. One token of the prompt stands for all of them: the
decoder sees the rows through their own layers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of, media_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import patches_of, tiles_within
from sglang.srt.server.multimodal.spans import Int32, ProcessedMedia, Span


class MllamaProcessor:
    """A Processor. "low" detail makes one tile of an image. The id of an image lies beyond the vocabulary, so in the expanded
    prompt another one stands there; the model puts the image's embedding in its place."""

    kinds: tuple[MediaKind, ...] = ("image",)
    row_ids: frozenset[int] = frozenset()
    default_tokens = 8192
    """rows that the decoder sees, of which none stands in the prompt; more than four tiles of 560 pixels have"""

    def __init__(self, folder: ModelFolder) -> None:
        self._processor = folder.image_processor("mllama.image_processing_pil_mllama", "MllamaImageProcessorPil")
        self._fingerprint = fingerprint_of(self._processor)
        image_id = folder.number("image_token_index", folder.number("image_token_id", 128256))
        text = folder.config.get("text_config")
        pad = text.get("pad_token_id") if isinstance(text, dict) else None
        self._row_id = pad if type(pad) is int and 0 <= pad < image_id else 0
        self.placeholders: dict[MediaKind, int] = {"image": image_id}
        self.image_token = folder.tokenizer.token_text(image_id)
        self._patch = folder.vision("patch_size", 14)
        self._side = int(self._processor.size["height"])
        self._max_tiles = int(self._processor.max_image_tiles)
        self._module: Any = importlib.import_module("transformers.models.mllama.image_processing_pil_mllama")

    def num_tokens(self, kind: MediaKind, shape: Shape, view: View) -> int:
        self._allowed(view)
        return 1

    def seen_size(self, shape: Shape, view: View) -> tuple[int, int]:
        down, across = self._grid(shape, self._allowed(view))
        return across * self._side, down * self._side

    def _allowed(self, view: View) -> int:
        """The most tiles."""
        allowed = min(tiles_within(view.pixels, self._side), self._max_tiles)
        if view.max_tokens:
            allowed = min(allowed, max(1, view.max_tokens // ((self._side // self._patch) ** 2 + 1)))
        return 1 if view.detail == "low" else allowed

    def _grid(self, shape: Shape, allowed: int) -> tuple[int, int]:
        """Tiles down and across."""
        height, width = self._module.get_optimal_tiled_canvas(shape.height, shape.width, allowed, self._side)
        return int(height) // self._side, int(width) // self._side

    def process(self, kind: MediaKind, clip: Clip, view: View) -> ProcessedMedia:
        height, width = clip.frames[0].shape[:2]
        allowed = self._allowed(view)
        found = run_processor(self._processor, [clip.frames[0]], max_image_tiles=allowed)
        count = int(found["num_tiles"].reshape(-1)[0])
        # transformers numbers the shapes that so many tiles can have; the model knows the numbers of its own most
        shapes = self._module.get_all_supported_aspect_ratios(self._max_tiles)
        tiles = found["pixel_values"][0, 0, :count]
        return ProcessedMedia(
            kind=kind,
            mm_hash=media_hash(self._fingerprint, kind, clip.frames, allowed),
            tokens=(self._row_id,),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch),
            grid=(count, tiles.shape[2] // self._patch, tiles.shape[3] // self._patch),
            facts={"shape": 1 + shapes.index(self._grid(Shape(width, height), allowed))},
        )

    def positions(self, length: int, images: Sequence[tuple[ProcessedMedia, list[Span]]]) -> tuple[Int32, int] | None:
        return None
