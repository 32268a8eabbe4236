"""Registry of processors by model. A new processor is one line here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sglang.srt.checkpoint.files import shown
from sglang.srt.errors import ModelError
from sglang.srt.server.multimodal.clip import Clip
from sglang.srt.server.multimodal.inputs import View
from sglang.srt.server.multimodal.processors.base import ModelFolder, Processor, first_line
from sglang.srt.server.multimodal.processors.gemma3 import Gemma3Processor
from sglang.srt.server.multimodal.processors.gemma4 import Gemma4Processor
from sglang.srt.server.multimodal.processors.glm4v import GLM_4_5V_IMAGE, GlmProcessor
from sglang.srt.server.multimodal.processors.internvl import InternVLProcessor
from sglang.srt.server.multimodal.processors.llava import LlavaNextProcessor, LlavaProcessor, OneVisionProcessor
from sglang.srt.server.multimodal.processors.mllama import MllamaProcessor
from sglang.srt.server.multimodal.processors.pixtral import PixtralProcessor, is_pixtral
from sglang.srt.server.multimodal.processors.qwen_vl import QwenVLProcessor
from sglang.srt.server.multimodal.processors.smolvlm import IdeficsProcessor

TRIAL_SHAPE = (168, 224, 3)
"""of an image that each processor must be able to take when the model is loaded"""

PROCESSORS: dict[str, Callable[[ModelFolder], Processor]] = {
    "gemma3": Gemma3Processor,
    "gemma4": Gemma4Processor,
    "glm4v": GlmProcessor,
    "glm4v_moe": lambda folder: GlmProcessor(folder, GLM_4_5V_IMAGE),
    "glm46v": GlmProcessor,
    "internvl": InternVLProcessor,
    "llava": lambda folder: PixtralProcessor(folder) if is_pixtral(folder) else LlavaProcessor(folder),
    "llava_next": LlavaNextProcessor,
    "llava_onevision": OneVisionProcessor,
    "mistral3": PixtralProcessor,
    "mllama": MllamaProcessor,
    "smolvlm": IdeficsProcessor,
    "idefics3": IdeficsProcessor,
    "qwen2_vl": QwenVLProcessor,
    "qwen2_5_vl": QwenVLProcessor,
    "qwen3_vl": QwenVLProcessor,
    "qwen3_vl_moe": QwenVLProcessor,
    "qwen3_5": QwenVLProcessor,
    "qwen3_5_moe": QwenVLProcessor,
}
"""model_type of config.json -> processor"""


def create_processor(folder: ModelFolder) -> Processor:
    """Raises ModelError for a model that has none, or whose files do not serve."""
    kind = folder.config.get("model_type")
    if not isinstance(kind, str) or kind not in PROCESSORS:
        raise ModelError(f"{folder.path}: no image processor is known for models of type {shown(kind)}")
    try:
        processor = PROCESSORS[kind](folder)
        image = processor.process("image", Clip([np.full(TRIAL_SHAPE, (90, 120, 150), np.uint8)]), View())
        if not np.isfinite(image.pixels).all():
            raise ModelError(f"{folder.path}: its settings for images turn a plain image into values that are not finite")
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  transformers reads its settings when it needs them
        raise ModelError(f"{folder.path}: its settings for images cannot be used: {first_line(error)}") from error
    return processor
