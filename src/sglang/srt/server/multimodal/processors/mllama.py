"""Llama 3.2 Vision: a picture as up to four tiles laid out as fits it best. One token of the prompt stands for all of them: the
decoder sees the rows through layers of their own."""

from __future__ import annotations

from collections.abc import Sequence

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.headers import Shape
from sglang.srt.server.multimodal.inputs import Detail
from sglang.srt.server.multimodal.processors.base import Frame, ModelFolder, fingerprint_of, picture_hash, run_processor
from sglang.srt.server.multimodal.processors.tiles import patches_of
from sglang.srt.server.multimodal.spans import Int32, Picture, Span


class MllamaProcessor:
    """A Processor. "low" detail makes one tile of a picture. The id of an image lies beyond the vocabulary, so in the expanded
    prompt another one stands there; the model puts the image's embedding in its place."""

    kinds: tuple[MediaKind, ...] = ("image",)

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

    def num_tokens(self, kind: MediaKind, shape: Shape, detail: Detail, alone: bool) -> int:
        return 1

    def process(self, kind: MediaKind, frames: Sequence[Frame], detail: Detail, alone: bool) -> Picture:
        found = run_processor(self._processor, [frames[0]], max_image_tiles=1 if detail == "low" else None)
        count = int(found["num_tiles"].reshape(-1)[0])
        tiles = found["pixel_values"][0, 0, :count]
        return Picture(
            kind=kind,
            mm_hash=picture_hash(self._fingerprint, kind, frames, detail),
            tokens=(self._row_id,),
            row_id=self._row_id,
            pixels=patches_of(tiles, self._patch),
            grid=(count, tiles.shape[2] // self._patch, tiles.shape[3] // self._patch),
            facts={"shape": int(found["aspect_ratio_ids"].reshape(-1)[0])},
        )

    def positions(self, length: int, pictures: Sequence[tuple[Picture, list[Span]]]) -> tuple[Int32, int] | None:
        return None
