"""Registry of encoders. A new one is one line here."""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.model.configs.vision_config import VisionConfig
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.models.vision.gemma4 import Gemma4Vision
from sglang.srt.model.models.vision.glm4v import GlmVision
from sglang.srt.model.models.vision.intern_vit import InternVision
from sglang.srt.model.models.vision.layers import Encoder
from sglang.srt.model.models.vision.llava import LlavaVision, TiledLlavaVision
from sglang.srt.model.models.vision.mllama import MllamaVision
from sglang.srt.model.models.vision.pixtral import PixtralVision
from sglang.srt.model.models.vision.qwen3_vl import DeepQwenVision
from sglang.srt.model.models.vision.qwen_vl import QwenVision, WindowedQwenVision
from sglang.srt.model.models.vision.siglip import GemmaVision, IdeficsVision

ENCODERS: dict[str, Callable[[Ops, WeightSource, VisionConfig], Encoder]] = {
    "gemma3": GemmaVision,
    "llava": LlavaVision,
    "llava_next": TiledLlavaVision,
    "llava_onevision": TiledLlavaVision,
    "gemma4": Gemma4Vision,
    "glm4v": GlmVision,
    "idefics": IdeficsVision,
    "internvl": InternVision,
    "pixtral": PixtralVision,
    "mistral3": PixtralVision,
    "mllama": MllamaVision,
    "qwen2_vl": QwenVision,
    "qwen3_vl": DeepQwenVision,
    "qwen2_5_vl": WindowedQwenVision,
}


def create_encoder(ops: Ops, source: WeightSource, config: VisionConfig) -> Encoder:
    """The encoder of `config.kind`, with weights from `source`. Raises ModelError."""
    return ENCODERS[config.kind](ops, source, config)
