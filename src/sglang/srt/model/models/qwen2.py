"""Qwen2 and Qwen2.5: Llama with biases on q, k and v (`attention_bias`) and, in some, sliding windows (`windowed_layers`)."""

from __future__ import annotations

from sglang.srt.model.models.llama import Llama


class Qwen2(Llama):
    """What differs from Llama is in the ModelConfig."""
