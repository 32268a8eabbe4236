"""GLM-4.1V, 4.5V and 4.6V: images of any size, as Qwen2-VL has them; to its settings an image counts as a pair of frames."""

from __future__ import annotations

import importlib
from typing import Any

from sglang.srt.media_item import MediaKind
from sglang.srt.server.multimodal.processors.base import ModelFolder, fingerprint_of
from sglang.srt.server.multimodal.processors.qwen_vl import QwenVLProcessor

GLM_MODULE = "glm4v.image_processing_pil_glm4v"
GLM_4_5V_IMAGE = 151363
"""the id that stands for an image in GLM-4.5V"""


class GlmProcessor(QwenVLProcessor):
    """A Processor."""

    def __init__(self, folder: ModelFolder, image_token_id: int = 151343) -> None:
        self._processor = folder.image_processor(GLM_MODULE, "Glm4vImageProcessorPil", in_pixels=True)
        self._fingerprint = fingerprint_of(self._processor)
        self.placeholders: dict[MediaKind, int] = {"image": folder.number("image_token_id", image_token_id)}
        self.kinds: tuple[MediaKind, ...] = ("image",)
        self._around = (folder.number("image_start_token_id", 151339), folder.number("image_end_token_id", 151340))
        begin, end = (folder.tokenizer.token_text(token_id) for token_id in self._around)
        self.image_token = f"{begin}{folder.tokenizer.token_text(self.placeholders['image'])}{end}"
        self._writes_times = False
        self._tokenizer = folder.tokenizer
        self._per_second = 0.0
        self._merge = int(self._processor.merge_size)
        self._pair = self.moments = int(self._processor.temporal_patch_size)
        self._unit = int(self._processor.patch_size) * self._merge
        module: Any = importlib.import_module(f"transformers.models.{GLM_MODULE}")
        self._smart_resize = module.smart_resize

    def resized(self, height: int, width: int, edges: dict[str, int]) -> tuple[int, int]:
        frames = {"num_frames": self._pair, "temporal_factor": self._pair}
        found: tuple[int, int] = self._smart_resize(height=height, width=width, factor=self._unit, **frames, **edges)
        return found
