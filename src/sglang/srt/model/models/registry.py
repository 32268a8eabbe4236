"""Registry of architectures with their own layers; all others use the decoder's frame alone."""

from __future__ import annotations

from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.gemma3n import Gemma3n
from sglang.srt.model.models.gemma4 import Gemma4
from sglang.srt.model.models.mllama import Mllama

MODELS: dict[str, type[Decoder]] = {
    "gemma3n": Gemma3n,
    "gemma4": Gemma4,
    "mllama": Mllama,
}


def create_model(ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> Decoder:
    """Builds the model of `config.architecture` with weights from `source`. Raises ModelError."""
    return MODELS.get(config.architecture, Decoder)(ops, source, config, num_positions)
