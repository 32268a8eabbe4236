"""Which file implements which architecture. A new model is one line here."""

from __future__ import annotations

from sglang.srt.errors import ModelError
from sglang.srt.model.kernels.ops import Ops
from sglang.srt.model.layers.source import WeightSource
from sglang.srt.model.model_config import ModelConfig
from sglang.srt.model.models.decoder import Decoder
from sglang.srt.model.models.gemma3 import Gemma3
from sglang.srt.model.models.llama import Llama
from sglang.srt.model.models.mllama import Mllama

MODELS: dict[str, type[Decoder]] = {
    "llama": Llama,  # and Mistral, SmolLM2
    "qwen2": Llama,  # with biases on q, k and v
    "qwen3": Llama,  # with norms over each head of q and k
    "gemma3": Gemma3,
    "mllama": Mllama,
}


def create_model(ops: Ops, source: WeightSource, config: ModelConfig, num_positions: int) -> Decoder:
    """Builds the model of `config.architecture` with weights from `source`. Raises ModelError."""
    if config.architecture not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise ModelError(f"the architecture {config.architecture!r} is not supported; supported are {known}")
    return MODELS[config.architecture](ops, source, config, num_positions)
